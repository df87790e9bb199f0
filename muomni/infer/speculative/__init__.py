"""Speculative decoding: who drafts tokens."""
