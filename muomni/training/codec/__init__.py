"""Training of the speech codec."""
