"""`kvant rebuild`: make a file again from its lock, with the same bytes."""

from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.units import format_bytes

# fmt: off
LockFile = Annotated[Path, typer.Argument(help="The .lock.json that was written beside a file.", show_default=False)]
Source = Annotated[Path, typer.Option(help="The full-precision model it was made from.", show_default=False)]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="File to write; default the lock's name.", show_default=False)]  # noqa: E501
Text = Annotated[Path | None, typer.Option(help="The calibration text, if it was a file.", show_default=False)]
Imatrix = Annotated[Path | None, typer.Option(help="The importance file, if one was used.", show_default=False)]
Statistics = Annotated[Path | None, typer.Option(help="What calibration measured, if it was kept; default beside the lock.", show_default=False)]  # noqa: E501
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core. Bytes do not depend on them.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# fmt: on


def rebuild(
    lock: LockFile,
    source: Source,
    out: Out = None,
    text: Text = None,
    imatrix: Imatrix = None,
    statistics: Statistics = None,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a file again from the lock that `kvant optimize` wrote beside it, and check that its bytes are the same.

    The lock holds hashes of the model, the text, the statistics and the file, and the block type of every tensor. What
    differs is said; then nothing is written.

    \b
    Examples:
      kvant rebuild SmolLM2-135M-kvant-4.50.lock.json --source SmolLM2-135M
      kvant rebuild own.lock.json --source model.gguf --text book.txt -o own.gguf
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes.rebuild.rebuild import rebuild as run

    with console.progress(quiet=json) as progress:
        made = run(
            lock, source, out=out, text=text, imatrix=imatrix, statistics=statistics, threads=threads,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(made)
        return
    console.say(
        f"{made.path}: {made.preset}, {format_bytes(made.size_bytes)}, SHA-256 {made.sha256} as in the lock, "
        f"{made.wall_s:.1f} s"
    )
