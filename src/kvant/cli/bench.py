"""`kvant bench`: the threads and session options that a model runs fastest with here."""

from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.stored import complete_model, model_path
from kvant.units import format_bytes, format_speed


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="GGUF files, MLX or ONNX directories, stored models.", autocompletion=complete_model,
            show_default=False,
        ),
    ],
    threads: Annotated[
        str | None, typer.Option(help="Thread counts to try: 1,2,4; by default powers of two.", show_default=False)
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every setting is run; medians are shown.")] = 3,
    save: Annotated[
        bool, typer.Option("--save", help="ONNX: keep the best in genai_config.json, where onnxruntime-genai reads it.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:  # fmt: skip
    """Time models of any format under several settings, and say which is best on this machine.

    Every run has a process of its own, and settings take turns. Of settings within 3 % the one with the fewest threads
    is taken; ONNX Runtime's threads may wait by spinning, which costs a core and gains where tokens are short.

    \b
    Examples:
      kvant bench small-Q4_K_M.gguf
      kvant bench small.gguf small-onnx/ --threads 1,2,4 --tokens 64
      kvant bench small-onnx/ --save
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes.measure.bench import bench as run

    try:
        counts = [int(n) for n in threads.split(",")] if threads else []
    except ValueError:
        raise typer.BadParameter(f"--threads: {threads!r} is no list of numbers such as 1,2,4.") from None
    with console.progress(quiet=json) as progress:
        found = run(
            [model_path(m) for m in models], threads=counts, n_prompt=prompt, n_generate=tokens, rounds=rounds,
            save=save, progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(found)
        return
    waits = {None: "", True: "spin", False: "sleep"}
    rows = [
        (
            Path(b.path).name, str(t.threads or "its own"), waits[t.spinning], format_speed(t.pp_tok_s),
            format_speed(t.tg_tok_s), format_bytes(t.rss_bytes), "<- best" if t.is_best and len(b.timings) > 1 else "",
        )
        for b in found
        for t in b.timings
    ]  # fmt: skip
    columns = ("model", "threads", "waiting", "prompt tok/s", "gen tok/s", "peak RAM", "")
    console.table(f"{prompt} tokens read, {tokens} generated, {rounds} rounds", columns, rows)
    for b in found:
        if b.saved:
            console.say(f"{b.path}: the best is kept in genai_config.json.")
