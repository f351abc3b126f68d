"""The local store of models, their names and where they come from."""
