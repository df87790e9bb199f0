"""Training: a recipe becomes a run. `muomni.train` is the function for it from Python."""
