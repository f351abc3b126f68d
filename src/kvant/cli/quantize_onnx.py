"""What `kvant quantize` does for ONNX: int8 operators for any model, weights of few bits for decoders."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console
from kvant.cli.units import format_bytes, parse_bytes
from kvant.errors import UnsupportedFormatError

if TYPE_CHECKING:
    from kvant.quant.importance import Importance
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


def int8(
    model: Path, preset: str | None, out: Path | None, *, data: Path | None, method: str, max_drop: float,
    metric: str | None, threads: int, overwrite: bool, json: bool, target: str | None,
) -> None:  # fmt: skip
    """Quantize an ONNX file of any kind and print what it costs."""
    from kvant.recipes.int8.quantize import quantize_int8

    kind = preset or "int8"
    with console.progress(quiet=json) as progress:
        result = quantize_int8(
            model, kind, out or Path(f"{model.stem}-{kind}.onnx"), data=data, method=method, max_drop=max_drop,
            metric=metric, threads=threads, overwrite=overwrite, target=target, progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(result)
        return
    _report(result)


def decoder(
    model: Path, preset: str | None, out: Path | None, *, calibrate: str | None, max_size: str | None, threads: int,
    overwrite: bool, json: bool, target: str | None, layout: LayoutName, dtype: str | None,
    importance: "Importance | None",
) -> None:  # fmt: skip
    """Quantize a decoder's weights and print what was written."""
    from kvant.formats.open import open_model
    from kvant.recipes.measure.calibration import calibrate as measure
    from kvant.recipes.targets.onnx.write import quantize_decoder

    kind = preset or "int4"
    with console.progress(quiet=json) as progress:

        def calibration() -> "Calibration":
            return measure(open_model(model), calibrate or "bundled", threads=threads, progress=progress)

        result = quantize_decoder(
            model, kind, out or Path(f"{model.resolve().name.removesuffix('.gguf')}-onnx-{kind}"),
            calibration=calibration if calibrate else None, importance=importance,
            max_bytes=parse_bytes(max_size) if max_size else None,
            target=target, layout=layout.value, dtype=_dtype(dtype), threads=threads, overwrite=overwrite,
            progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    for line in result.rewritten:
        console.say(line)
    how = "by importance" if importance else "under a Hessian"
    console.table("", ("blocks", "matrices"), list(result.types.items()))
    console.say(
        f"{result.path}: {result.type}, {format_bytes(result.size_bytes)} ({result.size_bytes} bytes), "
        f"{result.bpw:.2f} bits per weight, {result.n_fitted} matrices {how}, {result.wall_s:.1f} s"
    )


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
