"""What `kvant quantize` was asked for, and how a format is written by it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kvant.quant.importance import Importance


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line of `kvant quantize`; its fields are called as the command's parameters."""

    model: Path
    to: str
    preset: str | None
    out: Path | None
    importance: "Importance | None"
    type_: Sequence[str] | None
    output_tensor_type: str | None
    token_embedding_type: str | None
    keep: Sequence[str] | None
    pure: bool
    plan: Path | None
    write_plan: Path | None
    dry_run: bool
    allow_requantize: bool
    max_file_size: str | None
    resume: bool
    overwrite: bool
    threads: int
    calibration_data: Path | None
    calibration_method: str
    max_drop: float
    metric: str | None
    calibrate: str | None
    max_size: str | None
    target: str | None
    layout: str
    dtype: str | None
    json: bool

    @property
    def stem(self) -> str:
        """Name of the model for outputs."""
        return self.model.resolve().name.removesuffix(".gguf")

    def place(self, preset: str) -> Path:
        """Return where to write: as asked, or named in the working directory as the format names its outputs."""
        from kvant.recipes.targets.registry import find_target

        return self.out or Path(find_target(self.to).output_name(self.stem, preset))


def _nothing(_options: typer.Context) -> None:
    """Nothing more to check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a format is written.

    Attributes:
        name: The format; `int8` for operators of ONNX files.
        takes: Options that mean something for it, of those that not every way takes.
        run: Does what was asked, and prints what came of it.
        check: Refuses options that make one another useless.
        instead: Where to go with an option that is not taken, by its name.
    """

    name: str
    takes: frozenset[str]
    run: Callable[[Asked], None]
    check: Callable[[typer.Context], None] = _nothing
    instead: Mapping[str, str] = field(default_factory=dict)
