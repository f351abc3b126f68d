"""Measure a variant against its full-precision model, every format on one scale."""
