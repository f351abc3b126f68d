"""What `kvant quantize` does for ONNX: int8 operators for any model, weights of few bits for decoders."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.cli.way import Asked, Way
from kvant.errors import UnsupportedFormatError
from kvant.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from kvant.recipes.int8.quantize import Int8Result
    from kvant.recipes.measure.calibration import Calibration
    from kvant.recipes.targets.onnx.plan import Dtype

CalibrationData = Annotated[
    Path | None,
    typer.Option(help="ONNX: named inputs, a .npz file or a directory of them.", show_default=False),
]
CalibrationMethod = Annotated[str, typer.Option(help="ONNX: auto, minmax, entropy or percentile.")]
MaxDrop = Annotated[float, typer.Option(help="ONNX: most that int8 may lose: cosine distance of outputs, or metric.")]
MetricEntry = Annotated[
    str | None,
    typer.Option("--metric", metavar="MODULE:FUNCTION", help="ONNX: your score of a model.", show_default=False),
]
Calibrate = Annotated[
    str | None,
    typer.Option(help="MLX, ONNX: encode under Hessians measured on: bundled, self, or a text.", show_default=False),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        help="MLX, ONNX, calibrated: the best blocks of every matrix for this size: 100MB.", show_default=False
    ),
]


class LayoutName(StrEnum):
    """Who reads an ONNX directory."""

    genai = "genai"
    browser = "transformers.js"


Layout = Annotated[
    LayoutName, typer.Option(help="ONNX: who reads the directory: onnxruntime-genai, or transformers.js in a browser.")
]
Target = Annotated[
    str | None, typer.Option(help="ONNX: execution provider it must run on: CPU, CUDA, ...", show_default=False)
]


def is_onnx(path: Path) -> bool:
    """Say whether a path names an ONNX file; the format has no mark of its own to tell it by."""
    return path.suffix == ".onnx"


def int8(asked: Asked) -> None:
    """Quantize an ONNX file of any kind and print what it costs."""
    from kvant.recipes.int8.quantize import quantize_int8

    kind = asked.preset or "int8"
    with console.progress(quiet=asked.json) as progress:
        result = quantize_int8(
            asked.model, kind, asked.out or Path(f"{asked.model.stem}-{kind}.onnx"), data=asked.calibration_data,
            method=asked.calibration_method, max_drop=asked.max_drop, metric=asked.metric, threads=asked.threads,
            overwrite=asked.overwrite, target=asked.target, progress=progress,
        )  # fmt: skip
    if asked.json:
        console.print_json(result)
        return
    _report(result)


def check_int8(options: typer.Context) -> None:
    """Refuse options that an ONNX file makes useless."""
    if options.params["to"] != WAY.name:
        refuse(options, ("to",), "is onnx for an ONNX file")
    if options.params["calibration_data"] is None:
        refuse(options, ("max_drop", "metric"), "is measured on inputs, which --calibration-data gives")
    if options.params["preset"] == "int8-dynamic":
        refuse(options, ("calibration_method",), "finds static ranges, and int8-dynamic has none")


def decoder(asked: Asked) -> None:
    """Quantize a decoder's weights and print what was written."""
    from kvant.formats.open import open_model
    from kvant.recipes.measure.calibration import calibrate as measure
    from kvant.recipes.targets.onnx.write import quantize_decoder

    kind, model = asked.preset or "int4", open_model(asked.model)
    with console.progress(quiet=asked.json) as progress:

        def calibration() -> "Calibration":
            return measure(model, asked.calibrate or "bundled", threads=asked.threads, progress=progress)

        result = quantize_decoder(
            model, kind, asked.place(kind),
            calibration=calibration if asked.calibrate else None, importance=asked.importance,
            max_bytes=parse_bytes(asked.max_size) if asked.max_size else None,
            target=asked.target, layout=LayoutName(asked.layout).value, dtype=_dtype(asked.dtype),
            threads=asked.threads, overwrite=asked.overwrite, progress=progress,
        )  # fmt: skip
    if asked.json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    for line in result.rewritten:
        console.say(line)
    how = "by importance" if asked.importance else "under a Hessian"
    console.table("", ("blocks", "matrices"), list(result.types.items()))
    console.say(
        f"{result.path}: {result.type}, {format_bytes(result.size_bytes)} ({result.size_bytes} bytes), "
        f"{result.bpw:.2f} bits per weight, {result.n_fitted} matrices {how}, {result.wall_s:.1f} s"
    )


def check_decoder(options: typer.Context) -> None:
    """Refuse a type where a size chooses the types."""
    if options.params["max_size"] is not None:
        refuse(options, ("preset",), "gives every matrix its blocks, and --max-size chooses those")


WAY = Way(
    name="onnx",
    takes=frozenset({"calibrate", "max_size", "imatrix", "dtype", "target", "layout"}),
    run=decoder, check=check_decoder,
)  # fmt: skip
INT8 = Way(
    name="int8",
    takes=frozenset({"calibration_data", "calibration_method", "max_drop", "metric", "target"}),
    run=int8, check=check_int8,
)  # fmt: skip


def _dtype(name: str | None) -> "Dtype":
    floats: dict[str, Dtype] = {"F32": "F32", "F16": "F16"}
    if name is not None and name.upper() not in floats:
        raise UnsupportedFormatError(f"dtype: {name!r} is none that ONNX decoders take here. Use F32 or F16.")
    return floats[(name or "F32").upper()]


def _report(result: "Int8Result") -> None:
    from kvant.recipes.int8.left import reasons

    def ms(seconds: float | None) -> str:
        return "-" if seconds is None else f"{1000 * seconds:.2f} ms"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.5f}"

    before, after, score = result.before, result.after, result.score
    rows = [
        ("size", format_bytes(before.size_bytes), format_bytes(after.size_bytes)),
        ("latency, median", ms(before.latency_s), ms(after.latency_s)),
        ("loss on held-out runs", number(0.0 if score else None), number(score.drop if score else None)),
        ("signal to noise, dB", "-", "-" if not score or score.snr_db is None else f"{score.snr_db:.1f}"),
    ]
    if before.metric is not None:
        rows.append(("metric", number(before.metric), number(after.metric)))
    console.table(f"{result.path}: {result.settings.label}", ("", "before", "after"), rows)
    console.say(f"{result.n_quantized} operators are int8; {len(result.kept_float)} stay float to keep the limit.")
    if result.left_float:
        console.say(f"Left as they were: {reasons(result.left_float, result.kind)}.")
    if after.size_bytes >= before.size_bytes:
        console.say("The file is no smaller than before: what int8 saves in weights, its scales and operators take.")
    if score is None:
        console.say("Nothing was measured: pass --calibration-data to see what this costs.")
    else:
        console.say(f"Limit {result.max_drop:g}; {result.n_held_out} held-out runs, {result.threads} threads.")
