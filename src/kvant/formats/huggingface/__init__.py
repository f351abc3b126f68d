"""Hugging Face model directories: config, safetensors, tokenizer."""
