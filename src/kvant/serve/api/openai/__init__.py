"""OpenAI's API: chat completions, completions, embeddings, responses and the list of models."""
