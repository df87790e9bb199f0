"""What a model learns from: the module that adds the losses up, with the text's, and each other objective in a file."""
