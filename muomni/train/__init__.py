"""Training. `run` assembles a stage from its recipe, `loop` turns it, `step` is one optimizer step."""
