"""GGUF, the file format of ggml and llama.cpp."""
