"""What a file holds: facts, findings, and the grids that weights lie on."""
