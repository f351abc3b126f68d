"""LoRA adapters as PEFT saves them: read, and merged into the weights of their base."""
