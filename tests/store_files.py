"""Small GGUF files for tests of the store, put together byte by byte."""

import hashlib
from pathlib import Path

import raw_files as raw


def noise(seed: str, n_bytes: int) -> bytes:
    """Bytes that are the same for the same seed."""
    return (hashlib.sha256(seed.encode()).digest() * (n_bytes // 32 + 1))[:n_bytes]


def write_gguf(
    path: Path, tensors: dict[str, bytes], *, note: str = "", gap: bytes = b"\0", tail: bytes = b"", split: int = 0
) -> Path:
    """Write a file of F32 tensors; `gap` fills the room between them, `tail` follows the last one.

    `split` makes it the first (1) or second (2) of two shards.
    """
    keys = [raw.key("general.architecture", raw.STRING, "llama"), raw.key("note", raw.STRING, note)]
    if split:
        keys += [
            raw.key("split.no", raw.U16, split - 1), raw.key("split.count", raw.U16, 2),
            raw.key("split.tensors.count", raw.I32, 2 * len(tensors)),
        ]  # fmt: skip
    data, infos = b"", []
    for name, content in tensors.items():
        infos.append(raw.tensor(name, [len(content) // 4], 0, len(data)))
        data += content
        room = -len(data) % 32
        data += (gap * room)[:room]
    path.write_bytes(raw.gguf(keys, infos, data + tail))
    return path


def family(path: Path, own: str, *, shared: int = 40_000, private: int = 4_000) -> Path:
    """Write a file whose `shared` bytes all of the family have, and whose `private` bytes only those of `own` have."""
    return write_gguf(path, {"shared": noise("shared", shared), "odd": noise("odd", 36), "own": noise(own, private)})
