"""MLX directories."""
