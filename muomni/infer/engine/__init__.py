"""The engine: scheduler, steps, prefix cache."""
