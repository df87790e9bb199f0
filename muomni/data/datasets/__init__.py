"""Datasets: rows of token ids, media and speech, a function of their number."""
