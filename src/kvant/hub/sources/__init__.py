"""Where models come from: the Hugging Face hub, addresses and files."""
