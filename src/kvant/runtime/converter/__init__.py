"""Upstream's own converter of Hugging Face directories, for the classes that kvant has no family of.

`pins.py` says which version and what it needs, `environment.py` finds or makes the environment that it lives in,
`process.py` runs it confined, `runner.py` is its first code there, where kvant is not installed.
"""
