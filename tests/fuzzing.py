"""What the fuzz targets share: seeds, a file in memory per execution, and the rule that only our errors come out."""

import contextlib
import copy
import inspect
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import atheris

from kvant.errors import KvantError

MAX_SEED_BYTES = 4096
LIMITS = ("-timeout=20", "-rss_limit_mb=2048")
"""Seconds and memory of one input, unless the command line says others: no hang, no allocation that a file decides."""


def instrument(*modules: ModuleType) -> None:
    """Report the branches of all functions of modules to the fuzzer.

    `atheris.instrument_imports` does not see what an editable installation imports.
    """
    for module in modules:
        owners = [
            module,
            *(c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__),
        ]
        for function in (f for owner in owners for f in vars(owner).values() if isinstance(f, FunctionType)):
            if function.__module__ == module.__name__:
                atheris.instrument_func(function)


SCALARS: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, 1.5, 1e308, "", "x", "\0", "a/b", "\ud800",
    [], {}, [None], [[]] * 9,
)  # fmt: skip
DEPTH = 400


def mutate_json(data: bytes, max_size: int, seed: int) -> bytes:
    """Change JSON as JSON: two bytes in three that a byte mutator changes end a decoder before anything reads values.

    What lies behind a zero byte is left to the byte mutator, and so is a third of all changes.
    """
    chance = random.Random(seed)
    head, zero, rest = data.partition(b"\0")
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or chance.random() < 0.34:
        return bytes(atheris.Mutate(data, max_size))
    try:
        for _ in range(chance.choice((1, 1, 2, 4))):
            _mutate_value(document, chance)
        made = json.dumps(document, separators=(",", ":")).encode() + zero + rest
    except RecursionError:  # it grew deeper with every change
        return head[: max_size // 2]
    return made if len(made) <= max_size else bytes(atheris.Mutate(data, max_size))


def _mutate_value(document: dict[str, Any], chance: random.Random) -> None:
    """Walk down to some value and put another in its place, remove it, rename it or wrap it."""
    holder: Any = document
    while True:
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = chance.choice(keys)
        if not isinstance(holder[key], dict | list) or not holder[key] or chance.random() < 0.2:
            break
        holder = holder[key]
    kind = chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(["", "x", *map(str, keys)])] = holder.pop(key)
    elif kind == 2:
        for _ in range(chance.choice((1, 3, DEPTH))):
            holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
    elif kind == 3 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = chance.choice(
            (-holder[key], holder[key] + 1, holder[key] - 1, float(holder[key]), str(holder[key]))
        )
    else:
        holder[key] = copy.deepcopy(chance.choice(SCALARS))


def run(
    exercise: Callable[[Path], None],
    seeds: Iterable[bytes] | Callable[[Path], Iterable[bytes]],
    *,
    max_seed_bytes: int = MAX_SEED_BYTES,
    is_json: bool = False,
) -> None:
    """Fuzz `exercise` with libFuzzer's options from the command line; without a corpus directory, from `seeds`.

    Args:
        exercise: Reads the file it is given; what it raises beside `KvantError` is a defect.
        seeds: Inputs to begin with, or what makes them in a directory; long ones are left out.
        max_seed_bytes: Bytes of the longest.
        is_json: Whether inputs begin with JSON, which is then changed as JSON too.
    """
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as work:
        path, corpus = Path(work, "input"), Path(work, "corpus")
        corpus.mkdir()
        made = seeds(Path(work)) if callable(seeds) else seeds
        for number, seed in enumerate(seed for seed in made if len(seed) <= max_seed_bytes):
            (corpus / f"{number}").write_bytes(seed)

        def one(data: bytes) -> None:
            path.write_bytes(data)
            with contextlib.suppress(KvantError):
                exercise(path)

        given = sys.argv if any(not a.startswith("-") for a in sys.argv[1:]) else [*sys.argv, str(corpus)]
        mutator = {"custom_mutator": mutate_json} if is_json else {}
        atheris.Setup([given[0], *LIMITS, *given[1:]], one, **mutator)
        atheris.Fuzz()
