"""Fuzz bundles of models: `python tests/fuzz/fuzz_bundle.py -runs=100000`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
import store_files
from kvant.hub import bundle, manifest, names, pieces, tar
from kvant.hub.store import Store

BLOCK = 512


def seeds(work: Path) -> list[bytes]:
    """Bundles of one model and of two that share an object."""
    store, found = Store.open(work / "source"), []
    for name in ("a", "b"):
        store_files.family(work / f"{name}.gguf", name, shared=40, private=20)
        store.import_file(work / f"{name}.gguf", name)
    for chosen in (["a"], ["a", "b"]):
        store.export(chosen, work / "made.tar", overwrite=True)
        found.append((work / "made.tar").read_bytes().rstrip(b"\0") + bytes(2 * BLOCK))
    return found


def checked(data: bytes) -> bytes:
    """Make the check sum of every header right, so that what is behind it gets read."""
    fixed = bytearray(data)
    for at in range(0, len(fixed) - BLOCK + 1, BLOCK):
        if fixed[at + 257 : at + 262] == b"ustar":
            total = sum(fixed[at : at + 148]) + 8 * 32 + sum(fixed[at + 156 : at + BLOCK])
            fixed[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(fixed)


def exercise(path: Path) -> None:
    """Import a bundle and remove what came; nothing else appears."""
    path.write_bytes(checked(path.read_bytes()))
    store = Store.open(path.parent / "store")
    before = set(path.parent.iterdir())
    for model in store.import_bundle(path, overwrite=True):
        store.find(model.name)
        store.remove(model.name)
    assert set(path.parent.iterdir()) == before


if __name__ == "__main__":
    fuzzing.instrument(bundle, manifest, names, pieces, tar)
    fuzzing.run(exercise, seeds, max_seed_bytes=1 << 14)
