"""Architectures: what each model family calls its tensors and hyperparameters, in transformers and in llama.cpp."""
