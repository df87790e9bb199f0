"""Training, technique by technique, side by side with other libraries."""
