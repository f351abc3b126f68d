"""Kill a process at random instants while it changes the store, and check that nothing complete was lost.

A child imports, copies, removes, opens, packs, collects, or takes a bundle in; SIGKILL ends it at a random time, or at
a random file operation (`--at operation`). Then the store must check clean, every name that was not being changed must
open with the bytes it had, the one that was must have its old or its new ones, the same change must succeed when it is
made again, and a collection must leave no byte that no name needs.

Run: python benchmarks/store_kill.py --kills 500
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvant.dtypes import block_type
from kvant.errors import ModelNotFoundError
from kvant.files import sha256_file
from kvant.formats.gguf.layout import TensorInfo, file_layout
from kvant.hub.store import Store
from kvant.metadata import Value, ValueType

NAMES = ("a", "a:two", "b", "b:two", "hf.co/org/c:q4")
CHANGES = (  # what os and open() tell an audit hook about
    "open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "sqlite3.connect",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One thing to do: what, and with which name and file."""

    what: str
    name: str
    file: Path | None = None
    other: str = ""


def write_model(path: Path, family: int, own: int, n_bytes: int) -> None:
    """Write a GGUF file; all of a family share most tensors, and number `own` decides the others."""
    count, kind = 12, block_type("F32")
    lengths = [n_bytes // 4 // count + index for index in range(count)]  # odd lengths: there are zeros between
    infos = [TensorInfo(f"t{index}", (length,), kind) for index, length in enumerate(lengths)]
    keys = {"general.architecture": Value(ValueType.STRING, "llama"), "own": Value(ValueType.UINT32, own)}
    layout = file_layout(keys, infos)
    raw = bytearray(layout.total_bytes)
    raw[: len(layout.header)] = layout.header
    for index, info in enumerate(infos):
        seed = f"{family} {index} {own if index % 4 == 0 else 'shared'}".encode()
        data = (hashlib.sha256(seed).digest() * (info.n_bytes // 32 + 1))[: info.n_bytes]
        raw[layout.offsets[info.name] : layout.offsets[info.name] + info.n_bytes] = data
    path.write_bytes(raw)


def make(store: Store, change: Change) -> None:
    """Do it."""
    if change.what == "import":
        assert change.file is not None
        store.import_file(change.file, change.name)
    elif change.what == "bundle":
        assert change.file is not None
        store.import_bundle(change.file, name=change.name, overwrite=True)
    elif change.what == "remove":
        store.remove(change.name)
    elif change.what == "copy":
        store.copy(change.other, change.name)
    elif change.what == "open":
        store.find(change.name)
    else:
        store.gc(pack=change.what == "pack")


def choose(chance: random.Random, there: dict[str, str], files: list[Path], bundles: list[Path]) -> Change:
    """Choose something that can be done now."""
    what = chance.choice(["import", "import", "bundle", "remove", "copy", "open", "pack", "gc"])
    name = chance.choice(NAMES)
    if what == "import" or not there:
        return Change("import", name, chance.choice(files))
    if what == "bundle":
        return Change(what, name, chance.choice(bundles))
    return Change(what, name if what == "copy" else chance.choice(sorted(there)), other=chance.choice(sorted(there)))


def run_child(root: Path, change: Change, at: int | None) -> int:
    """Fork; the child makes the change, and kills itself at its file operation number `at`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if at is not None:
            left = at

            def count(event: str, _arguments: object) -> None:
                nonlocal left
                left -= event in CHANGES
                if left == 0:
                    left = -1  # killing is an event as well
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
        make(Store.open(root), change)
    except BaseException:
        os.write(2, f"{change}: {traceback.format_exc()}\n".encode())
        os._exit(1)
    os._exit(0)


def digests(store: Store) -> dict[str, str]:
    """Return every model's digest."""
    return {model.name.tagged: model.digest for model in store.list()}


def check(root: Path, before: dict[str, str], change: Change, known: dict[str, str]) -> None:
    """Check a store after a kill, and make the change again.

    `known` says, for every digest that was seen complete, the hash of the model's file.
    """
    store = Store.open(root)
    found = store.fsck()
    assert found.is_clean, found
    assert not found.lost, found
    after = digests(store)
    target = {tagged(change.name)} if change.what in ("import", "bundle", "remove", "copy") else set()
    for name in (before.keys() | after.keys()) - target:
        assert before.get(name) == after.get(name), (name, change)
    try:
        make(store, change)
    except ModelNotFoundError:
        assert change.what == "remove", change  # it was done already
    done = digests(store)
    for name in target & after.keys():
        assert after[name] in (before.get(name), done.get(name)), (name, change)
    for model in store.list():
        if change.what == "open" or model.path.exists():
            found_hash = sha256_file(store.find(model.name).path)
            assert found_hash == known.setdefault(model.digest, found_hash), model
    store.gc()
    final = store.fsck()
    assert final.is_clean, final
    assert final.garbage_bytes == 0, final
    assert not list(store.disk.tmp.iterdir()), "temporary files are left"
    assert not store.disk.quarantine.exists(), "something was quarantined"


def tagged(name: str) -> str:
    """Return a name with its tag."""
    from kvant.hub.names import ModelName

    return ModelName.parse(name).tagged


def prepare(directory: Path, n_bytes: int) -> tuple[list[Path], list[Path]]:
    """Write model files and bundles."""
    files, bundles = [], []
    for family in range(2):
        for own in range(3):
            files.append(directory / f"f{family}-{own}.gguf")
            write_model(files[-1], family, own, n_bytes)
    source = Store.open(directory / "source")
    for index, file in enumerate(files[::2]):
        source.import_file(file, f"m{index}")
        bundles.append(directory / f"m{index}.tar")
        source.export([f"m{index}"], bundles[-1])
    return files, bundles


def kill_often(
    kills: int, seed: int, n_bytes: int, *, by_time: bool, say: Callable[[str], object]
) -> dict[str, object]:
    """Kill until `kills` children died; return how many of each kind did, and how many had a change under way."""
    chance = random.Random(seed)
    died: Counter[str] = Counter()
    finished = under_way = 0
    usual = dict.fromkeys(("import", "bundle", "remove", "copy", "open", "pack", "gc"), 0.1)
    known: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="kvant-kill-") as name:
        files, bundles = prepare(Path(name), n_bytes)
        root = Path(name) / "store"
        Store.open(root)
        while died.total() < kills:
            store = Store.open(root)
            before = digests(store)
            change = choose(chance, before, files, bundles)
            start = time.perf_counter()
            pid = run_child(root, change, None if by_time else chance.randint(1, 60))
            if by_time:
                time.sleep(chance.random() * 1.1 * usual[change.what])
                os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                died[change.what] += 1
                under_way += store.disk.journal.exists()
                if died.total() % 50 == 0:
                    say(f"{died.total()} killed, {finished} finished before")
            else:
                assert os.WEXITSTATUS(status) == 0, (change, status)
                finished += 1
            check_start = time.perf_counter()
            check(root, before, change, known)
            took = min(check_start - start, 2.0)
            usual[change.what] = max(
                0.02, 0.8 * usual[change.what] + 0.2 * took * (1.5 if os.WIFSIGNALED(status) else 1)
            )
    return {
        "killed": died.total(),
        "under_way": under_way,
        "finished": finished,
        "by_change": dict(sorted(died.items())),
    }


def main() -> None:
    """Run, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=1_000_000, help="size of a model file")
    parser.add_argument("--at", choices=("time", "operation"), default="time")
    given = parser.parse_args()
    figures = kill_often(
        given.kills, given.seed, given.bytes, by_time=given.at == "time", say=lambda t: print(t, file=sys.stderr)
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
