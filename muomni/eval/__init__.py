"""What a model is worth: text, hearing, speaking."""
