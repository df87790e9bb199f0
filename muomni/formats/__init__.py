"""How a model lies in a folder: our own layout, Qwen3, GGUF, the Hugging Face hub."""
