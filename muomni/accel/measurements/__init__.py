"""What was measured on this machine, and kept."""
