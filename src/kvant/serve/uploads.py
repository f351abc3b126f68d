"""Files that clients upload by their digest before they make a model of them.

They lie in `uploads` of kvant's own directory under names made of the digest's 64 digits alone; `create` takes them
into the store. What nobody took for a day is removed by the next upload. Room is reserved before bytes are taken, so
uploads side by side do not find the same room.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from kvant.errors import QuotaError, ValueRangeError
from kvant.files import commit_file, disk_errors, home
from kvant.hub.store import Store

KEPT_S = 24 * 3600
STEP_BYTES = 1 << 26
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


class Uploads:
    """The uploaded files of a gateway.

    Args:
        max_bytes: Most bytes of all of them together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.root, self.max_bytes = home() / "uploads", max_bytes
        self._reserved: dict[Path, int] = {}  # bytes that an upload in progress may come to, by its partial file

    def path(self, digest: str) -> Path:
        """Return where the file of a digest lies.

        Raises:
            ValueRangeError: It is not a SHA-256 digest; nothing else ever becomes part of a path.
        """
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise ValueRangeError(f"digest: {digest[:100]!r} is not sha256: and 64 hexadecimal digits. Correct it.")
        return self.root / f"sha256-{match[1]}"

    async def receive(self, digest: str, body: AsyncIterator[bytes], announced: int | None, store: Store) -> bool:
        """Take a file in, if its bytes are those of its digest.

        Returns:
            Whether it is new.

        Raises:
            ValueRangeError: The digest is none, or not that of the bytes.
            QuotaError: There is no room for it.
        """
        path = self.path(digest)
        if path.exists():
            return False
        self.root.mkdir(parents=True, exist_ok=True)
        self._prune()
        partial = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
        found, size = hashlib.sha256(), 0
        try:
            self._reserve(partial, announced or 0, 0, store)
            with disk_errors(path), partial.open("xb") as file:
                async for chunk in body:
                    size += len(chunk)
                    if size > self._reserved[partial]:  # its length was not said
                        self._reserve(partial, size, STEP_BYTES, store)
                    found.update(chunk)
                    file.write(chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())  # gigabytes, perhaps: others are answered meanwhile
            if f"sha256-{found.hexdigest()}" != path.name:
                raise ValueRangeError(f"upload: its digest is sha256:{found.hexdigest()}, not {digest}. Send it again.")
            commit_file(partial, path)
        finally:
            self._reserved.pop(partial, None)
            partial.unlink(missing_ok=True)
        return True

    def _reserve(self, partial: Path, n_bytes: int, more: int, store: Store) -> None:
        """Let an upload come to `n_bytes`, and to as much as `more` on top if there is room for that.

        Raises:
            QuotaError: There is no room for `n_bytes`.
        """
        room = self._room(partial, store)
        if n_bytes > room:
            raise QuotaError(
                f"upload: {n_bytes} bytes are above the {room} that there is room for beside the other uploads. "
                "Remove models, or wait for those."
            )
        self._reserved[partial] = min(room, n_bytes + more)

    def _room(self, partial: Path, store: Store) -> int:
        """Return the bytes that one upload may come to: what neither files nor other uploads have taken or reserved."""
        there = {}
        for entry in self.root.iterdir():
            with contextlib.suppress(FileNotFoundError):  # taken into the store meanwhile
                there[entry] = entry.stat().st_size
        taken = there | self._reserved
        taken.pop(partial, None)
        unwritten = sum(n_bytes - there.get(path, 0) for path, n_bytes in self._reserved.items() if path != partial)
        free = shutil.disk_usage(self.root).free + there.get(partial, 0) - unwritten
        room = min(self.max_bytes - sum(taken.values()), free)
        if store.quota is not None:
            room = min(room, store.quota - store.usage() - sum(taken.values()))
        return max(0, room)

    def _prune(self) -> None:
        oldest = time.time() - KEPT_S
        for entry in self.root.iterdir():
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < oldest:
                    entry.unlink()
