"""Choose the block type of every tensor under a budget of bytes and decode time; costs arrive as numbers."""
