"""`kvant quantize`: write a model with the block types of a preset or a plan."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvant.cli import console, quantize_mlx, quantize_onnx
from kvant.cli.given import is_given, refuse
from kvant.cli.units import format_bytes, parse_bytes
from kvant.files import check_apart

if TYPE_CHECKING:
    from kvant.model import Model
    from kvant.quant.importance import Importance
    from kvant.quant.matching import PatternMatch
    from kvant.quant.plan import Fallback, Plan
    from kvant.recipes.targets.gguf.write import QuantizeResult


class To(StrEnum):
    """Formats to write."""

    gguf = "gguf"
    mlx = "mlx"
    onnx = "onnx"


_GGUF_ALONE = (
    "type_", "output_tensor_type", "token_embedding_type", "keep", "pure", "plan", "write_plan", "dry_run",
    "resume",
)  # fmt: skip
_RULES = ("type_", "output_tensor_type", "token_embedding_type", "keep", "pure")
_WAYS = {
    **dict.fromkeys(_GGUF_ALONE, ("gguf",)),
    **dict.fromkeys(("max_file_size", "allow_requantize"), ("gguf", "mlx")),
    **dict.fromkeys(("calibrate", "max_size"), ("mlx", "onnx")),
    "imatrix": ("gguf", "mlx", "onnx"),
    **dict.fromkeys(("calibration_data", "calibration_method", "max_drop", "metric"), ("int8",)),
    "dtype": ("mlx", "onnx"),
    "target": ("onnx", "int8"),
    "layout": ("onnx",),
}
"""Options that belong to some ways of quantizing: `int8` is that of ONNX files."""


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
Format = Annotated[To, typer.Option("--to", help="Format to write.")]
# fmt: on


def quantize(
    options: typer.Context,
    model: Source,
    preset: Preset = None,
    out: Out = None,
    to: Format = To.gguf,
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
    from kvant.formats.open import open_model
    from kvant.quant.presets import plan_with_matches

    _check_options(options, "int8" if quantize_onnx.is_onnx(model) else to.value)
    if quantize_onnx.is_onnx(model):
        quantize_onnx.int8(
            model, preset, out, data=calibration_data, method=calibration_method, max_drop=max_drop, metric=metric,
            threads=threads, overwrite=overwrite, json=json, target=target,
        )  # fmt: skip
        return
    importance = _importance(imatrix, calibrate)
    if to is To.onnx:
        quantize_onnx.decoder(
            model, preset, out, calibrate=calibrate, max_size=max_size, target=target, threads=threads, json=json,
            overwrite=overwrite, layout=layout, dtype=dtype, importance=importance,
        )  # fmt: skip
        return
    if to is To.mlx:
        quantize_mlx.directory(
            model, preset, out, dtype=dtype, calibrate=calibrate, max_size=max_size, max_file_size=max_file_size,
            allow_requantize=allow_requantize, overwrite=overwrite, threads=threads, json=json, importance=importance,
        )  # fmt: skip
        return
    source = open_model(model, kinds=("model", "mmproj"))
    chosen, matches = (_checked_plan(source, plan), ()) if plan is not None else plan_with_matches(
        source, preset or "", has_importance=importance is not None, pure=pure, overrides=_overrides(type_ or ()),
        output_type=output_tensor_type, embedding_type=token_embedding_type, keep=keep or (),
    )  # fmt: skip
    chosen = _sized(source, chosen, importance, write_plan, overwrite=overwrite)
    if dry_run:
        _report_plan(source, chosen, importance, matches, json=json)
    else:
        console.notes([] if json else [str(match) for match in matches if not match.changed])
        _write(
            source, chosen, out, importance, threads=threads, max_file_size=max_file_size, resume=resume,
            overwrite=overwrite, allow_requantize=allow_requantize, json=json,
        )  # fmt: skip


def _importance(imatrix: Path | None, calibrate: str | None) -> "Importance | None":
    from kvant.formats.imatrix import read_imatrix

    if imatrix and calibrate:
        raise typer.BadParameter("--imatrix and --calibrate both say what matters. Give one; --calibrate knows more.")
    return read_imatrix(imatrix) if imatrix else None


def _write(
    source: "Model", chosen: "Plan", out: Path | None, importance: "Importance | None", *, threads: int,
    max_file_size: str | None, resume: bool, overwrite: bool, allow_requantize: bool, json: bool,
) -> None:  # fmt: skip
    """Quantize to GGUF and print what was written."""
    from kvant.recipes.targets.gguf import write as recipe

    _say_fallbacks([] if json else chosen.fallbacks, len(chosen.types))
    with console.progress(quiet=json) as progress:
        result = recipe.quantize(
            source, chosen, out or recipe.default_output(source, chosen), importance=importance, threads=threads,
            max_file_bytes=parse_bytes(max_file_size) if max_file_size else None, resume=resume, overwrite=overwrite,
            allow_requantize=allow_requantize, progress=progress,
        )  # fmt: skip
    _report_result(result, json=json)


def _check_options(options: typer.Context, way: str) -> None:
    """Refuse an option that means nothing for what is to be written."""
    for parameter in options.command.params:
        ways = _WAYS.get(parameter.name or "", (way,))
        if way not in ways and is_given(options, parameter.name or ""):
            ask = " `kvant optimize` takes both for GGUF." if way == "gguf" and "onnx" in ways and "mlx" in ways else ""
            raise typer.BadParameter(
                f"{parameter.opts[0]} is for {' and '.join(ways)}, and this writes {way}. Leave it out.{ask}"
            )
    if way == "int8" and options.params["to"] is not To.onnx:
        refuse(options, ("to",), "is onnx for an ONNX file")
    if way == "int8" and options.params["calibration_data"] is None:
        refuse(options, ("max_drop", "metric"), "is measured on inputs, which --calibration-data gives")
    if way == "int8" and options.params["preset"] == "int8-dynamic":
        refuse(options, ("calibration_method",), "finds static ranges, and int8-dynamic has none")
    if way == "onnx" and options.params["max_size"] is not None:
        refuse(options, ("preset",), "gives every matrix its blocks, and --max-size chooses those")
    if options.params["plan"] is not None:
        refuse(options, _RULES, "decides types, and --plan gives the type of every tensor")
    has = {name for name, value in options.params.items() if value}
    if way != "gguf":
        return
    if not has & {"preset", "plan"}:
        raise typer.BadParameter("give a preset (-t Q4_K_M; `kvant advise MODEL` recommends one) or --plan FILE.")
    if {"preset", "plan"} <= has:
        raise typer.BadParameter("a preset and a plan both say which types. Leave -t or --plan out.")
    if {"resume", "max_file_size"} <= has:
        raise typer.BadParameter("an output that is split cannot be continued. Leave --resume or --max-file-size out.")


def _checked_plan(source: "Model", path: Path) -> "Plan":
    from kvant.quant.plan import check_plan, read_plan

    chosen = read_plan(path)
    check_plan(chosen, source)
    return chosen


def _sized(
    source: "Model", chosen: "Plan", importance: "Importance | None", path: Path | None, *, overwrite: bool
) -> "Plan":
    """Return a plan with its predicted size; written to a file, too, if there is a path."""
    from kvant.quant.plan import write_plan
    from kvant.recipes.targets.gguf.write import with_size

    found = with_size(source, chosen, importance)
    if path is not None:
        check_apart(path, (source.path, *source.files))
        write_plan(found, path, overwrite=overwrite)
    return found


def _overrides(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        pattern, _, name = text.rpartition("=")
        if not pattern or not name:
            raise typer.BadParameter(f"--type {text}: is not REGEX=TYPE. Write for example --type 'attn_v=Q6_K'.")
        pairs.append((pattern, name))
    return pairs


def _report_plan(
    source: "Model", plan: "Plan", importance: "Importance | None", matches: "Sequence[PatternMatch]", *, json: bool
) -> None:
    """Print what would be written."""
    from kvant.quant.matching import match_importance
    from kvant.recipes.targets.gguf.write import remarks_on, unmeasured

    use = match_importance(importance, source, plan) if importance else None
    remarks = remarks_on(source, plan, importance)

    missing = unmeasured(source, plan, importance)
    if json:
        console.print_json({"plan": plan, "size_bytes": plan.predicted_bytes, "bpw": plan.bpw(source),
                            "needs_importance": missing, "remarks": remarks, "patterns": matches,
                            "importance": use})  # fmt: skip
        return
    console.notes(remarks)
    console.say(f"{source.name} as {plan.preset}:")
    console.table("", ("type", "tensors"), list(plan.counts().items()))
    for match in matches:
        console.say(str(match))
    if use is not None and use.used:
        console.say(
            f"{use.file}: importance for {len(use.used)} of {len(use.used) + len(use.missing)} tensors that use it"
        )
    _say_fallbacks(plan.fallbacks, len(plan.types))
    if missing:
        console.say(
            f"{len(missing)} tensors ({missing[0]}, ...) need importance: this plan is refused without --imatrix FILE."
        )
    size = plan.predicted_bytes or 0
    console.say(f"Size: {format_bytes(size)} ({size} bytes), {plan.bpw(source):.2f} bits per weight. Nothing written.")


def _report_result(result: "QuantizeResult", *, json: bool) -> None:
    """Print what was written."""
    if json:
        console.print_json(result)
        return
    console.notes(result.remarks)
    files = "" if len(result.files) == 1 else f" in {len(result.files)} files"
    console.say(
        f"{result.path}: {result.preset}, {format_bytes(result.size_bytes)}{files} ({result.size_bytes} bytes), "
        f"{result.bpw:.2f} bits per weight, {result.wall_s:.1f} s"
    )


def _say_fallbacks(fallbacks: Sequence["Fallback"], n_tensors: int) -> None:
    """Say which tensors do not get what the preset asks for, alike ones in one row, and what that costs."""
    if not fallbacks:
        return
    groups: dict[tuple[str, str, int], list[Fallback]] = {}
    for fallback in fallbacks:
        groups.setdefault((fallback.wanted, fallback.got, fallback.row_length), []).append(fallback)
    rows = [
        (f"{wanted} -> {got}", row_length, len(group), f"{sum(f.extra_bytes for f in group):+,} B", group[0].tensor)
        for (wanted, got, row_length), group in groups.items()
    ]
    have = "has" if len(fallbacks) == 1 else "have"
    console.say(f"{len(fallbacks)} of {n_tensors} tensors {have} rows that do not divide into the blocks asked for:")
    console.table("", ("fallback", "row length", "tensors", "cost", "first"), rows)
