"""What `kvant quantize` does for a format that another distribution adds: one of its presets."""

import typer

from kvant.cli import console
from kvant.cli.way import Asked, Way
from kvant.units import format_bytes


def run(asked: Asked) -> None:
    """Write a preset and print what was written."""
    from kvant.recipes.targets.preset import write_preset

    with console.progress(quiet=asked.json) as progress:
        result = write_preset(
            asked.model, asked.to, asked.preset or "", asked.out, importance=asked.importance, threads=asked.threads,
            overwrite=asked.overwrite, progress=progress,
        )  # fmt: skip
    if asked.json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    console.say(
        f"{result.path}: {result.preset}, {format_bytes(result.size_bytes)} ({result.size_bytes} bytes), "
        f"{result.bpw:.2f} bits per weight"
    )


def check(options: typer.Context) -> None:
    """Refuse a call that names no preset."""
    if options.params["preset"] is None:
        raise typer.BadParameter(f"--to {options.params['to']} needs one of its types: -t TYPE.")


WAY = Way(name="this format", takes=frozenset({"imatrix"}), run=run, check=check)
