"""Decoding, side by side with other engines."""
