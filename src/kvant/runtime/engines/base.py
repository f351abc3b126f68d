"""What is said of an engine, and of files that it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kvant.metadata import Value
from kvant.model import Model
from kvant.runtime.engine import Engine
from kvant.runtime.tokenizers import Questions, Spoken


class SpeedRuns(NamedTuple):
    """How speed is measured: tokens of the prompt, tokens made after it, and how often."""

    n_prompt: int
    n_generate: int
    repeats: int


SPEED = SpeedRuns(n_prompt=256, n_generate=32, repeats=3)
"""What engines are measured by unless they say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An engine as kvant finds it under the entry points `kvant.engines`; the module that holds it imports little.

    Attributes:
        name: Of the format it runs, the entry point's name: `gguf`.
        format: Title of the format: `GGUF`.
        title: Title of the engine: `llama.cpp`.
        finds: Says quickly whether a path is of its format, whole or damaged; of a path where nothing is, it is not.
        open: Checks what is at a path that it finds. Raises `FormatError` for what is damaged.
        process: Starts the engine in a process of its own; nothing of it is imported before.
        speaks: Asks its tokenizer and chat template; None if it has none that could be asked.
        speed: How its speed is measured.
        takes_threads: Whether it runs with as many threads as it is told.
        spins: Whether its idle threads wait by spinning or asleep, as `Engine.open` says.
        keep_setting: Writes threads and spinning into an artifact, where the engine finds them; None if nothing is
            kept there.
        is_served: Whether the store keeps its files as they are and `kvant run` and the gateway run them.
        order: Engines with lower numbers are asked first whether a path is theirs.
    """

    name: str
    format: str
    title: str
    finds: Callable[[Path], bool]
    open: Callable[[Path], "Artifact"]
    process: Callable[[], Engine]
    speaks: Callable[["Artifact", Questions], Spoken] | None = None
    speed: SpeedRuns = SPEED
    takes_threads: bool = True
    spins: bool = False
    keep_setting: Callable[[Path, int, bool], None] | None = None
    is_served: bool = False
    order: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Files of a model that an engine runs, checked.

    Attributes:
        path: As it was given.
        entry: What its engine opens.
        files: Files that hold its weights.
        metadata: Of these, for what it was calibrated on.
        engine: What runs it.
        model: Its tensors and tokenizer; None of formats that kvant does not read weights of.
    """

    path: Path
    entry: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Value]
    engine: EngineSpec
    model: Model | None = None

    @property
    def name(self) -> str:
        """Name of its directory, or of its file without the ending."""
        return self.entry.name if self.entry.is_dir() else self.entry.stem
