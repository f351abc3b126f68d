"""MLX model directories: safetensors of packed codes, scales and biases, with the grouping in config.json."""
