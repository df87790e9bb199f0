"""Search for the fastest step configuration."""
