"""Optimizations applied to a model from outside, one a file."""
