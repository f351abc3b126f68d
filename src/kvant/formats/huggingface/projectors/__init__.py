"""Projectors of multimodal models: a table for each kind, and the reader that translates a checkpoint by it."""
