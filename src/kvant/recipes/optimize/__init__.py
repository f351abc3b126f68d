"""The search for the best small version of a model."""
