"""What an engine's process may still do: the same walls for every one, whoever starts it.

`spawn.py` belongs to the owner: it writes the command line and the environment of a child. `launch.py` is the child's
first code: it confines itself (`confine.py`), then runs the engine. `landlock.py`, `seccomp.py` and `namespaces.py` are
the walls. All but `spawn.py` run in environments where kvant is not installed, and import nothing but the standard
library. docs/explanation/sandbox.md says what holds where.
"""
