"""Indexes on disk: tokens and media files, read through memory maps."""
