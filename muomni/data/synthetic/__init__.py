"""Data that are made, not read: each item is a function of its number."""
