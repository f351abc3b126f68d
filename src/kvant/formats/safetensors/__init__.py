"""safetensors, the tensor container of Hugging Face directories."""
