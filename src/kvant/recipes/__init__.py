"""The main path from a model to a measured artifact."""
