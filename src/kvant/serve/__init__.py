"""The gateway: many models behind one door, each in an engine process of its own."""
