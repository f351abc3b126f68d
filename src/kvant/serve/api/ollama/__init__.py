"""Ollama's API: what makes text and vectors, what tells of models, what changes which there are."""
