"""`kvant parity`: do variants read the same tokens and build the same prompts as the original?"""

from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.stored import complete_model, model_path


def parity(
    variants: Annotated[
        list[Path],
        typer.Argument(help="GGUF files, MLX or ONNX directories.", autocompletion=complete_model, show_default=False),
    ],
    against: Annotated[
        Path, typer.Option(help="The model they were made from: Hugging Face directory or GGUF.", show_default=False)
    ],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 file to tokenize, instead of the bundled text.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare tokens and chat prompts of variants, each by its own engine; exit status 1 if any differ.

    Odd texts of every script, spaces and special tokens as text, and a long ordinary text are tokenized; conversations
    with and without a system message are rendered and tokenized. llama.cpp reads GGUF, mlx-lm MLX, onnxruntime-genai
    ONNX; of a Hugging Face directory tokenizer.json is read by the library that transformers uses, not our conversion.

    \b
    Examples:
      kvant parity small.gguf small-mlx/ small-onnx/ --against SmolLM2-135M
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes.measure.parity import parity as run

    with console.progress(quiet=json) as progress:
        found = run([model_path(v) for v in variants], against=model_path(against), text=text, progress=progress)
    if json:
        console.print_json(found)
    else:
        rows = [
            (Path(p.path).name, p.engine, f"{p.n_same_texts} of {p.n_texts}", f"{p.n_same_prompts} of {p.n_prompts}")
            for p in found
        ]
        console.table("", ("variant", "engine", "same tokens", "same prompts"), rows, left=2)
        for p in found:
            console.say(f"{Path(p.path).name}: compared with {p.truth}.")
            for d in p.differences:
                console.say(f"{Path(p.path).name}: {d.what} of {d.of}: {d.ours}, the original {d.theirs}.")
    if not all(p.is_same for p in found):
        raise typer.Exit(1)
