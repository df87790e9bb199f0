"""Validation of training data: reads everything once and says what is wrong."""
