"""What the fuzz targets share: seeds, a file in memory per execution, and the rule that only our errors come out."""

import contextlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType, ModuleType

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


def run(
    exercise: Callable[[Path], None],
    seeds: Iterable[bytes] | Callable[[Path], Iterable[bytes]],
    *,
    max_seed_bytes: int = MAX_SEED_BYTES,
) -> None:
    """Fuzz `exercise` with libFuzzer's options from the command line; without a corpus directory, from `seeds`.

    Args:
        exercise: Reads the file it is given; what it raises beside `KvantError` is a defect.
        seeds: Inputs to begin with, or what makes them in a directory; long ones are left out.
        max_seed_bytes: Bytes of the longest.
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
        atheris.Setup([given[0], *LIMITS, *given[1:]], one)
        atheris.Fuzz()
