"""Memory: what is in use, and what happens when it runs out."""
