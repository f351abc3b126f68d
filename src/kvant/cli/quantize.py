"""`kvant quantize`: write a model in few bits, in any format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import quantize_any, quantize_gguf, quantize_mlx, quantize_onnx
from kvant.cli.given import is_given
from kvant.cli.way import Asked, Way

if TYPE_CHECKING:
    from kvant.quant.importance import Importance

WAYS = {way.name: way for way in (quantize_gguf.WAY, quantize_mlx.WAY, quantize_onnx.WAY, quantize_onnx.INT8)}
"""The ways that have options of their own; every other format is written by `quantize_any`."""

_OWN = frozenset().union(*(way.takes for way in WAYS.values()))
"""Options that belong to some ways."""


# fmt: off
Source = Annotated[Path, typer.Argument(help="Hugging Face directory, GGUF or ONNX file.", show_default=False)]
Preset = Annotated[
    str | None,
    typer.Option("-t", "--preset", help="Q4_K_M, ...; MLX: 4bit, mxfp4, ...; ONNX: int4, ...", show_default=False),
]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Output; default MODEL-PRESET.gguf.", show_default=False)]
Imatrix = Annotated[Path | None, typer.Option(help="Importance file, .dat or .gguf.", show_default=False)]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="REGEX=TYPE", help="Type of the tensors found; repeatable, first match wins."),
]
HeadType = Annotated[str | None, typer.Option(help="Type of the output head.", show_default=False)]
EmbeddingType = Annotated[str | None, typer.Option(help="Type of the token embedding.", show_default=False)]
Keep = Annotated[list[str] | None, typer.Option(metavar="REGEX", help="Leave tensors found as they are; repeatable.")]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mix.")]
PlanFile = Annotated[Path | None, typer.Option(help="Plan file, instead of a preset.", show_default=False)]
WritePlan = Annotated[Path | None, typer.Option(help="Write the plan to this file as well.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be written, to the byte.")]
Requantize = Annotated[bool, typer.Option("--allow-requantize", help="Accept a model that is quantized already.")]
MaxFileSize = Annotated[
    str | None, typer.Option(help="Split the output into files of at most this size: 2GB.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue where an interrupted run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Format = Annotated[str, typer.Option("--to", help="Format to write: gguf, mlx, onnx, or an installed one.")]
# fmt: on


def quantize(
    options: typer.Context,
    model: Source,
    preset: Preset = None,
    out: Out = None,
    to: Format = quantize_gguf.WAY.name,
    imatrix: Imatrix = None,
    type_: Types = None,
    output_tensor_type: HeadType = None,
    token_embedding_type: EmbeddingType = None,
    keep: Keep = None,
    pure: Pure = False,
    plan: PlanFile = None,
    write_plan: WritePlan = None,
    dry_run: DryRun = False,
    allow_requantize: Requantize = False,
    max_file_size: MaxFileSize = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    threads: Threads = 0,
    calibration_data: quantize_onnx.CalibrationData = None,
    calibration_method: quantize_onnx.CalibrationMethod = "auto",
    max_drop: quantize_onnx.MaxDrop = 0.01,
    metric: quantize_onnx.MetricEntry = None,
    calibrate: quantize_onnx.Calibrate = None,
    max_size: quantize_onnx.MaxSize = None,
    target: quantize_onnx.Target = None,
    layout: quantize_onnx.Layout = quantize_onnx.LayoutName.genai,
    dtype: quantize_mlx.Dtype = None,
    json: Json = False,
) -> None:
    """Quantize a model: to GGUF with one of llama.cpp's presets or a plan of your own, to MLX, or to ONNX.

    Tensors equal those of llama.cpp's quantizer, of mlx_lm.convert, or of ONNX Runtime's; what does not fit is said.

    \b
    Examples:
      kvant quantize model.gguf -t IQ4_XS --imatrix imatrix.gguf -o small.gguf
      kvant quantize model.gguf -t Q4_K_M --type 'attn_v=Q8_0' --dry-run
      kvant quantize SmolLM2-135M --to mlx -t 4bit --calibrate bundled --max-size 75.8MB -o smol-mlx
      kvant quantize SmolLM2-135M --to onnx -t int4 --calibrate bundled --layout transformers.js -o web/smol
      kvant quantize vision.onnx -t int8-static --calibration-data inputs/ -o small.onnx
    """  # noqa: D301 - \b keeps the lines of the examples apart
    way = _way(model, to)
    _check_options(options, way)
    way.run(
        Asked(
            model=model, to=to, preset=preset, out=out, importance=_importance(imatrix, calibrate), type_=type_,
            output_tensor_type=output_tensor_type, token_embedding_type=token_embedding_type, keep=keep, pure=pure,
            plan=plan, write_plan=write_plan, dry_run=dry_run, allow_requantize=allow_requantize,
            max_file_size=max_file_size, resume=resume, overwrite=overwrite, threads=threads,
            calibration_data=calibration_data, calibration_method=calibration_method, max_drop=max_drop, metric=metric,
            calibrate=calibrate, max_size=max_size, target=target, layout=layout.value, dtype=dtype, json=json,
        )
    )  # fmt: skip


def _way(model: Path, to: str) -> Way:
    """Return how to write a format; an ONNX file has a way of its own, whatever it holds."""
    from kvant.recipes.targets.registry import TARGETS

    if quantize_onnx.is_onnx(model):
        return quantize_onnx.INT8
    if to not in TARGETS.names:
        raise typer.BadParameter(f"--to {to}: is none of {', '.join(TARGETS.names)}.")
    return WAYS.get(to, quantize_any.WAY)


def _importance(imatrix: Path | None, calibrate: str | None) -> "Importance | None":
    from kvant.formats.imatrix import read_imatrix

    if imatrix and calibrate:
        raise typer.BadParameter("--imatrix and --calibrate both say what matters. Give one; --calibrate knows more.")
    return read_imatrix(imatrix) if imatrix else None


def _check_options(options: typer.Context, way: Way) -> None:
    """Refuse an option that means nothing for what is to be written."""
    for parameter in options.command.params:
        name = parameter.name or ""
        if name in _OWN - way.takes and is_given(options, name):
            ways = [other.name for other in WAYS.values() if name in other.takes]
            raise typer.BadParameter(
                f"{parameter.opts[0]} is for {' and '.join(ways)}, and this writes {way.name}. Leave it out."
                f"{way.instead.get(name, '')}"
            )
    way.check(options)
