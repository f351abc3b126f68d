"""Tokenizers of Hugging Face directories: read as GGUF has them, and written back."""
