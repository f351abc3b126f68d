"""One way of generating, for the terminal and the gateway: a conversation, what an engine is sent, what it answers."""
