"""What `kvant quantize --to mlx` does."""

from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.way import Asked, Way
from kvant.units import format_bytes, parse_bytes

Dtype = Annotated[
    str | None, typer.Option(help="MLX, ONNX: float type of the rest: F16, F32; MLX also BF16.", show_default=False)
]


def directory(asked: Asked) -> None:
    """Write an MLX directory and print what became of the layers."""
    from kvant.devices.limits import cores
    from kvant.recipes.targets.mlx.plan import USUAL
    from kvant.recipes.targets.mlx.write import to_mlx

    kind = asked.preset or USUAL
    with console.progress(quiet=asked.json) as progress:
        result = to_mlx(
            asked.model, asked.place(kind), type=kind, dtype=asked.dtype,
            calibrate=asked.calibrate, importance=asked.importance,
            max_size_bytes=parse_bytes(asked.max_size) if asked.max_size else None,
            max_file_bytes=parse_bytes(asked.max_file_size) if asked.max_file_size else None,
            allow_requantize=asked.allow_requantize, overwrite=asked.overwrite, threads=asked.threads or cores(),
            progress=progress,
        )  # fmt: skip
    if asked.json:
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


def check(options: typer.Context) -> None:
    """Refuse a call that says nothing of the types."""
    if options.params["preset"] is None and not options.params["max_size"]:
        raise typer.BadParameter("--to mlx needs a type (-t 4bit), or --calibrate and --max-size to choose them.")


WAY = Way(
    name="mlx",
    takes=frozenset({"max_file_size", "allow_requantize", "calibrate", "max_size", "imatrix", "dtype"}),
    run=directory, check=check,
)  # fmt: skip
