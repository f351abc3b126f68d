"""A delivered file made again from its lock."""
