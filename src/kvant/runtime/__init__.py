"""Run an artifact in a real engine behind one protocol."""
