"""What a device offers, and what a model needs of it."""
