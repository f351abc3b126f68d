"""Anthropic's API: messages, and the tokens of a prompt."""
