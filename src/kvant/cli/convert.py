"""`kvant convert`: between Hugging Face directories, GGUF and MLX."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kvant.cli import architectures, console, convert_onnx
from kvant.cli.given import refuse
from kvant.units import format_bytes, format_weights, parse_bytes

if TYPE_CHECKING:
    from kvant.recipes.convert.convert import ConvertResult, Format

_OF_A_MODEL = (
    "model", "to", "type_", "out", "lora", "lora_only", "max_file_size", "threads", "overwrite", "converter", "yes",
)  # fmt: skip


class By(StrEnum):
    """Who converts."""

    auto = "auto"
    native = "native"
    upstream = "upstream"


class To(StrEnum):
    """Formats to write."""

    gguf = "gguf"
    hf = "hf"
    mlx = "mlx"
    onnx = "onnx"


# fmt: off
Source = Annotated[Path | None, typer.Argument(help="Hugging Face directory or GGUF file.", show_default=False)]
Target = Annotated[To, typer.Option("--to", help="Format to write.")]
Type = Annotated[str, typer.Option("-t", "--type", help="Type of the matrices: F32, F16, BF16; for GGUF also Q8_0; keep moves quantized weights as they are.")]  # noqa: E501
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Output; named after the model by default.", show_default=False)]  # noqa: E501
Mmproj = Annotated[bool | None, typer.Option("--mmproj/--no-mmproj", help="Write the projector alone, which turns pictures and sounds into what MODEL reads; or the language model alone.", show_default=False)]  # noqa: E501
Lora = Annotated[Path | None, typer.Option(help="Directory of a LoRA adapter (peft) that is merged into MODEL, its base.", show_default=False)]  # noqa: E501
LoraOnly = Annotated[bool, typer.Option("--lora-only", help="Write the adapter alone, as a GGUF for llama.cpp's --lora.")]  # noqa: E501
MaxFileSize = Annotated[str | None, typer.Option(help="Split the output into files of at most this size: 2GB.", show_default=False)]  # noqa: E501
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Converter = Annotated[By, typer.Option("--converter", help="Who makes a GGUF of a directory: kvant, or upstream's converter.")]  # noqa: E501
Yes = Annotated[bool, typer.Option("--yes", help="Install upstream's converter without asking.")]
Listing = Annotated[bool, typer.Option("--list-architectures", help="List the classes that are converted, and by whom.")]  # noqa: E501
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# fmt: on


def convert(
    options: typer.Context,
    model: Source = None,
    to: Target = To.gguf,
    type_: Type = "F16",
    out: Out = None,
    mmproj: Mmproj = None,
    lora: Lora = None,
    lora_only: LoraOnly = False,
    max_file_size: MaxFileSize = None,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    converter: Converter = By.auto,
    yes: Yes = False,
    list_architectures: Listing = False,
    json: Json = False,
) -> None:
    """Convert a model between a Hugging Face directory and GGUF, or to an MLX directory.

    Nothing of the model is run: no pickles, no code of its own. Quantized GGUFs are decoded on the way to Hugging Face
    and MLX, unless -t keep moves their blocks as they are: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4 to MLX, and what an
    MLX directory holds in 5 bits or fewer to GGUF. A model that sees becomes two GGUFs, the other one mmproj-NAME.gguf
    beside it. Either way every weight is compared with the source's, and a loss is said.

    Classes and projectors that kvant has no table of go to GGUF through upstream's own converter, confined, in an
    environment of its own that is installed once: asked for on a terminal, with --yes or KVANT_CONVERTER_INSTALL=yes in
    scripts.

    \b
    Examples:
      kvant convert SmolLM2-135M
      kvant convert smol.gguf --to hf -t BF16 -o smol-hf
      kvant convert smol-Q4_0.gguf --to mlx -t keep -o smol-mlx-q4
      kvant convert smol-mlx-4bit --to gguf -t keep -o smol-4bit.gguf
      kvant convert smol-Q8_0.gguf --to onnx -o smol-onnx
      kvant convert SmolVLM-500M-Instruct --mmproj -t F16
      kvant convert SmolLM2-135M --lora my-adapter -t BF16 -o tuned.gguf
      kvant convert orion-14b -t BF16 --yes
      kvant convert --list-architectures
    """  # noqa: D301 - \b keeps the lines of the examples apart
    if to is not To.gguf:
        refuse(options, ("mmproj",), f"is of GGUF, and --to {to.value} holds the language model alone")
    if list_architectures:
        refuse(options, _OF_A_MODEL, "is of a conversion, and --list-architectures is a list alone")
        architectures.show(json=json)
        return
    if model is None:
        raise typer.BadParameter("give the directory or file to convert, or --list-architectures.")
    from kvant.recipes.convert.writers import WRITERS

    if to.value not in WRITERS:  # what an exporter draws, not what kvant writes tensor by tensor
        unused = ("type_", "mmproj", "lora", "lora_only", "max_file_size", "threads", "converter", "yes")
        refuse(options, unused, "is not used with --to onnx")
        convert_onnx.decoder(model, out, overwrite=overwrite, json=json)
        return
    if mmproj:
        refuse(options, _OF_TEXT, "is not used with --mmproj")
        _projector(model, out, type_, overwrite=overwrite, threads=threads, json=json, converter=converter, yes=yes)
        return
    if lora_only:
        of_models = ("to", "type_", "max_file_size", "threads", "converter", "yes")
        refuse(options, of_models, "is not used with --lora-only")
        _adapter(model, lora, out, overwrite=overwrite, json=json)
        return
    from kvant.recipes.convert.convert import KEEP, conversion_type, default_output
    from kvant.recipes.convert.convert import convert as run

    kind = cast("Format", to.value)
    target = KEEP if type_.lower() == KEEP else conversion_type(type_, kind).name
    path = out or default_output(model, kind, target, lora=lora)
    limit = None if max_file_size is None else parse_bytes(max_file_size)
    with console.progress(quiet=json) as progress:
        result = run(
            model, path, to=kind, type=target, lora=lora, overwrite=overwrite, max_file_bytes=limit, progress=progress,
            threads=threads, converter=converter.value, install=yes, projector=mmproj is not False,
        )  # fmt: skip
    if json:
        console.print_json(result)
        return
    _say(result)


def _say(result: "ConvertResult") -> None:
    console.notes(result.remarks)
    for fallback in result.fallbacks:
        console.say(
            f"{fallback.tensor}: rows of {fallback.row_length} do not fit {fallback.wanted}; stored as {fallback.used}."
        )
    for part in result.compared:
        blocks = f"{part.n_exact_blocks / max(1, part.n_blocks):.3%} of blocks equal, "
        lost = f"{blocks if part.n_exact_blocks else ''}errors of up to {part.largest_error:.2g}"
        same = "every weight equal" if part.n_exact == part.n_tensors else lost
        console.say(f"{part.source} -> {part.stored}: {part.n_tensors} tensors, {part.n_exact} bit-exact, {same}")
    files = "" if len(result.files) == 1 else f" in {len(result.files)} files"
    is_conversion = Path(result.source).is_dir() and result.output.endswith(".gguf")
    by = f", {result.converter}" if is_conversion else ""
    console.say(
        f"{result.output}: {result.architecture}, {result.n_tensors} tensors, "
        f"{format_weights(result.n_weights)} weights, {result.type}, {format_bytes(result.size_bytes)}{files}, "
        f"{result.seconds:.1f} s{by}"
    )


_OF_TEXT = ("to", "lora", "lora_only", "max_file_size")


def _projector(
    model: Path, out: Path | None, kind: str, *, overwrite: bool, threads: int, json: bool, converter: By, yes: bool
) -> None:  # fmt: skip
    from kvant.recipes.convert.projector import convert_projector, projector_name

    path = out or projector_name(Path(model.resolve().name), kind)
    with console.progress(quiet=json) as progress:
        result = convert_projector(
            model, path, type=kind, overwrite=overwrite, threads=threads, converter=converter.value, install=yes,
            progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    for fallback in result.fallbacks:
        console.say(f"{fallback.tensor}: its rows do not fit {fallback.wanted}; stored as {fallback.used}.")
    console.say(
        f"{result.output}: projector {result.kind}, {result.n_tensors} tensors, {format_weights(result.n_weights)} "
        f"weights, {result.type}, {format_bytes(result.size_bytes)}, {result.seconds:.1f} s, {result.converter}"
    )


def _adapter(base: Path, lora: Path | None, out: Path | None, *, overwrite: bool, json: bool) -> None:
    from kvant.recipes.convert.convert import convert_adapter

    if lora is None:
        raise typer.BadParameter("--lora-only writes the adapter that --lora names. Give --lora DIR.")
    result = convert_adapter(base, lora, out or Path(f"{lora.resolve().name}-lora.gguf"), overwrite=overwrite)
    if json:
        console.print_json(result)
        return
    console.say(
        f"{result.output}: LoRA adapter for {result.architecture}, {result.n_tensors} tensors, "
        f"{format_bytes(result.size_bytes)}"
    )
