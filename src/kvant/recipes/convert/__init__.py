"""A model in another format, with the same weights."""
