"""Files that clients upload by their digest before they make a model of them.

They lie in `uploads` of kvant's own directory under names made of the digest's 64 digits alone; `create` takes them
into the store. What nobody took for a day is removed by the next upload.
"""

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
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


class Uploads:
    """The uploaded files of a gateway.

    Args:
        max_bytes: Most bytes of all of them together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.root, self.max_bytes = home() / "uploads", max_bytes

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
        room = self._room(store)
        if announced is not None and announced > room:
            raise QuotaError(f"upload: {announced} bytes are above the {room} that there is room for. Remove models.")
        partial = path.with_name(f"{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
        found, size = hashlib.sha256(), 0
        try:
            with disk_errors(path), partial.open("xb") as file:
                async for chunk in body:
                    size += len(chunk)
                    if size > room:
                        raise QuotaError(f"upload: more than the {room} bytes that there is room for. Remove models.")
                    found.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if f"sha256-{found.hexdigest()}" != path.name:
                raise ValueRangeError(f"upload: its digest is sha256:{found.hexdigest()}, not {digest}. Send it again.")
            commit_file(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def _room(self, store: Store) -> int:
        used = sum(entry.stat().st_size for entry in self.root.iterdir() if entry.is_file())
        room = min(self.max_bytes - used, shutil.disk_usage(self.root).free)
        return max(0, room if store.quota is None else min(room, store.quota - store.usage()))

    def _prune(self) -> None:
        oldest = time.time() - KEPT_S
        for entry in self.root.iterdir():
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < oldest:
                    entry.unlink()
