"""Models by name: the local store, where they come from, and how they are described."""
