"""What an engine's server may do beside what any engine may (runtime/sandbox): listen for its owner."""

from collections.abc import Sequence

from kvant.runtime.sandbox import confine as sandbox
from kvant.runtime.sandbox.policy import Policy


def confine(
    *, address_space_bytes: int, open_files: int, parent: int, reads: Sequence[str] = (), sockets: Sequence[str] = ()
) -> tuple[str, ...]:
    """Give up what an engine does not need, for ever; call it before a thread is started and the model opened.

    Args:
        address_space_bytes: Most memory the process may map; 0 for any.
        open_files: Most files and connections it may have open.
        parent: Process id of the owner, whose end ends this process.
        reads: Files of the model.
        sockets: Directory of the socket it listens on.

    Returns:
        Names of what now holds; see `runtime.sandbox.confine`.
    """
    policy = Policy(
        reads=tuple(reads), sockets=tuple(sockets), address_space_bytes=address_space_bytes, open_files=open_files,
        parent=parent,
    )  # fmt: skip
    return sandbox.confine(policy)
