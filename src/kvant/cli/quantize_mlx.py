"""What `kvant quantize --to mlx` does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from kvant.quant.importance import Importance

USUAL = "4bit"
"""What config.json gives for the whole model where a size decides every layer."""

Dtype = Annotated[
    str | None, typer.Option(help="MLX, ONNX: float type of the rest: F16, F32; MLX also BF16.", show_default=False)
]


def directory(
    model: Path, type_: str | None, out: Path | None, *, dtype: str | None, calibrate: str | None, max_size: str | None,
    max_file_size: str | None, allow_requantize: bool, overwrite: bool, threads: int, json: bool,
    importance: "Importance | None",
) -> None:  # fmt: skip
    """Write an MLX directory and print what became of the layers."""
    from kvant.devices.limits import cores
    from kvant.recipes.targets.mlx.write import to_mlx

    if type_ is None and not max_size:
        raise typer.BadParameter("--to mlx needs a type (-t 4bit), or --calibrate and --max-size to choose them.")
    type_ = type_ or USUAL
    with console.progress(quiet=json) as progress:
        result = to_mlx(
            model, out or Path(f"{model.resolve().name.removesuffix('.gguf')}-mlx-{type_}"), type=type_, dtype=dtype,
            calibrate=calibrate, importance=importance, max_size_bytes=parse_bytes(max_size) if max_size else None,
            max_file_bytes=parse_bytes(max_file_size) if max_file_size else None, allow_requantize=allow_requantize,
            overwrite=overwrite, threads=threads or cores(), progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    if result.kept:
        console.say(
            f"{len(result.kept)} layers ({result.kept[0]}, ...) have rows that no group divides: {result.dtype}."
        )
    types = ", ".join(f"{count} {name}" for name, count in result.types.items())
    console.say(
        f"{result.path}: {types} layers, {format_bytes(result.size_bytes)}, {result.bpw:.2f} bits per weight, "
        f"{result.wall_s:.1f} s"
    )
