"""The formats that a model is made in; one folder each."""
