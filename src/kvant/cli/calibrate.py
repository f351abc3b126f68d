"""`kvant calibrate`: measure which input channels matter and write an importance file."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse

# fmt: off
Source = Annotated[Path, typer.Argument(help="Hugging Face directory, or GGUF of F32, BF16, F16.", show_default=False)]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Output, .gguf or .dat; default MODEL-imatrix.gguf.", show_default=False)]  # noqa: E501
Text = Annotated[str, typer.Option(help="Text: bundled, self (the model writes it), or a UTF-8 file.")]
Windows = Annotated[int, typer.Option(min=1, help="Windows of 512 tokens to run at most.")]
Seed = Annotated[int, typer.Option(min=0, help="Makes the text that a model writes repeatable.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")]
# fmt: on


def calibrate(
    options: typer.Context,
    model: Source,
    out: Out = None,
    text: Text = "bundled",
    windows: Windows = 64,
    seed: Seed = 1,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure a model on calibration text and write an importance file that llama.cpp reads.

    The file holds what llama.cpp's own llama-imatrix would write for the same tokens, of any model that llama.cpp runs.
    An interrupted run takes up where it stopped.

    \b
    Examples:
      kvant calibrate SmolLM2-135M -o imatrix.gguf
      kvant calibrate SmolLM2-135M --text self -o imatrix.gguf
      kvant calibrate model.gguf --text mine.txt --windows 100 -o imatrix.dat
      kvant quantize model.gguf -t IQ3_XXS --imatrix imatrix.dat
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes.measure.importance import calibrate as run
    from kvant.recipes.measure.textname import SELF

    if text != SELF:
        refuse(options, ("seed",), "is for the text that a model writes (--text self)")
    out = out or Path(f"{model.resolve().name.removesuffix('.gguf')}-imatrix.gguf")
    with console.progress(quiet=json) as progress:
        done = run(model, out, text=text, windows=windows, seed=seed, overwrite=overwrite, progress=progress)
    if json:
        console.print_json(done)
        return
    console.say(f"{done.path}: importance of {done.entries} tensors, from {done.tokens} tokens of {done.text}")
    words = ("kvant", "quantize", str(model), "-t", "Q4_K_M", "--imatrix", done.path)
    console.say(f"Use it with: {shlex.join(words)}")
