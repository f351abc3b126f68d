"""Measure a variant against its full-precision model on one scale."""
