"""What one engine's process is allowed: a document on its command line."""

import json
from typing import Any, NamedTuple


class Policy(NamedTuple):
    """What a process keeps; everything else it gives up.

    Attributes:
        reads: Files and directories of its model.
        writes: Directories it may write in, and read.
        sockets: Directories it may make a Unix socket in and listen; without any it gets no socket at all.
        address_space_bytes: Most memory it may map; 0 for any.
        file_bytes: Most bytes of a file it writes, standard error included; 0 for any.
        open_files: Most files it may have open.
        cpu_seconds: Most processor time it may take; 0 for any.
        parent: Process id of its owner, whose end ends it; 0 where that must not be (see `spawn.policy`).
    """

    reads: "tuple[str, ...]" = ()
    writes: "tuple[str, ...]" = ()
    sockets: "tuple[str, ...]" = ()
    address_space_bytes: int = 0
    file_bytes: int = 64 << 20
    open_files: int = 1024
    cpu_seconds: int = 0
    parent: int = 0

    def to_json(self) -> str:
        """Return it as ASCII, whatever bytes the paths hold."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """Read what `to_json` wrote."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        return cls(**fields)
