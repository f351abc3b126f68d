"""The APIs that a gateway speaks: a folder for each, and what they have in common beside them."""
