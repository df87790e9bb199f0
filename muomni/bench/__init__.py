"""Measurements: what a model or a technique is compared with, and how fast it is."""
