"""Text: tokenizer, chat template, content parts."""
