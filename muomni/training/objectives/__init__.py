"""What a model learns from: one objective a file, and the module that adds them up."""
