"""Encoders of pictures and sound, and what brings their output to the Thinker."""
