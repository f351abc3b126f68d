"""`kvant optimize`: the best variant that keeps a budget, measured, with a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvant.cli import console
from kvant.cli.given import is_given, name_of, refuse
from kvant.recipes.optimize.fields import ABSENT, FIELDS, Field, Kind
from kvant.units import format_bytes, format_speed, parse_bytes, parse_time

if TYPE_CHECKING:
    from kvant.evaluate.loss import Measure
    from kvant.recipes.optimize.request import Request
    from kvant.recipes.report.report import MeasuredVariant, Report


def _lowered(text: str) -> str:
    return text.lower()


def _word(text: str | None) -> str | None:
    return None if text is None else text.lower()


# fmt: off
Source = Annotated[Path | None, typer.Argument(help="Hugging Face directory, or GGUF of F32, BF16, F16.", show_default=False)]  # noqa: E501
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file that says all but MODEL, -o, --keep, jobs and threads.", show_default=False)]  # noqa: E501
MaxSize = Annotated[str | None, typer.Option(help="Largest file: 100MB, 1.5GiB.", show_default=False)]
MaxRam = Annotated[str | None, typer.Option(help="Most memory while running, at --context.", show_default=False)]
MinSpeed = Annotated[float | None, typer.Option(help="Slowest generation, tokens per second.", show_default=False)]
MaxKld = Annotated[float | None, typer.Option(help="Largest mean KL divergence; asks for the smallest file.", show_default=False)]  # noqa: E501
MaxDistance = Annotated[float | None, typer.Option(help="The same of an embedding model: largest mean cosine distance of vectors.", show_default=False)]  # noqa: E501
Device = Annotated[str | None, typer.Option(help="Device to fit: this, phone-6gb, ...", show_default=False)]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Directory to write to; default MODEL-kvant.", show_default=False)]  # noqa: E501
Context = Annotated[int, typer.Option(min=16, help="Tokens of context that memory is predicted for.")]
Corpus = Annotated[str, typer.Option(help="Bundled text to measure on; its held-out half is used.")]
Text = Annotated[Path | None, typer.Option(help="UTF-8 file to measure on instead.", show_default=False)]
Chunks = Annotated[int, typer.Option(min=0, help="Windows of 512 tokens to measure on; 0 for all of the text.")]
Formats = Annotated[str, typer.Option(callback=_lowered, help="Formats wanted within the limits: gguf,mlx,onnx.")]
Candidates = Annotated[str | None, typer.Option(help="Presets to consider: Q4_K_M,Q5_K_M,...", show_default=False)]
Imatrix = Annotated[Path | None, typer.Option(help="Importance file; allows I-quants.", show_default=False)]
Calibrate = Annotated[str, typer.Option(help="Calibration text of fitted variants: bundled, self (the model writes it), a file, or none.")]  # noqa: E501
Statistics = Annotated[str, typer.Option(callback=_lowered, help="What measures the model: engine, or gradients (needs kvant[calibrate]).")]  # noqa: E501
KeepStatistics = Annotated[bool, typer.Option("--keep-statistics", help="Keep what was measured beside fitted files: rebuild needs it on other machines.")]  # noqa: E501
CalibrateWindows = Annotated[int, typer.Option(min=0, help="Windows of 512 tokens of the calibration text at most.")]
CalibrateSeed = Annotated[int, typer.Option(min=0, help="Of the labels drawn from the model's predictions, and of self.")]  # noqa: E501
Refine = Annotated[int, typer.Option(min=0, max=10, help="Fitted variants to measure after predictions are corrected.")]
Mmproj = Annotated[str | None, typer.Option(callback=_word, help="Type of its projector, if it sees or hears: F16 (usual), BF16, F32, Q8_0, none.", show_default=False)]  # noqa: E501
Keep = Annotated[str | None, typer.Option(help="Put the file into the store, too, by this name.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Measure every variant that fits, not only those that may win.")]
Jobs = Annotated[int, typer.Option(min=1, help="Variants at a time; more than one disturbs the speeds measured.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads in all; 0 for one per core.")]
Accept = Annotated[list[str] | None, typer.Option("--accept-licence", help="Accept this licence of the model's.", show_default=False)]  # noqa: E501
Time = Annotated[str | None, typer.Option(help="Most time for all of it, such as 10min: decides how much is read and refined.", show_default=False)]  # noqa: E501
CalibrateRam = Annotated[str | None, typer.Option(help="Most memory for calibration's sums; default a third of what is free.", show_default=False)]  # noqa: E501
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
# fmt: on


def optimize(
    options: typer.Context,
    model: Source = None,
    recipe: RecipeFile = None,
    max_size: MaxSize = None,
    max_ram: MaxRam = None,
    min_speed: MinSpeed = None,
    max_kld: MaxKld = None,
    max_distance: MaxDistance = None,
    device: Device = None,
    out: Out = None,
    context: Context = 4096,
    corpus: Corpus = "default",
    text: Text = None,
    chunks: Chunks = 16,
    formats: Formats = "gguf",
    candidates: Candidates = None,
    imatrix: Imatrix = None,
    calibrate: Calibrate = "bundled",
    statistics: Statistics = "engine",
    calibrate_windows: CalibrateWindows = 64,
    calibrate_seed: CalibrateSeed = 1,
    refine: Refine = 4,
    measure_all: All = False,
    mmproj: Mmproj = None,
    time: Time = None,
    calibrate_ram: CalibrateRam = None,
    keep_statistics: KeepStatistics = False,
    keep: Keep = None,
    jobs: Jobs = 1,
    threads: Threads = 0,
    accept_licence: Accept = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Find the best small version of a model for a budget: make variants, measure them against the original, pick one.

    A limit on size, memory or speed asks for the best quality that keeps it. A limit on KLD asks for the smallest file
    that keeps it. Without any limit, or with a device alone, the smallest file with a mean KLD of at most 0.05 is
    taken. It is written with report.html and report.json, a recipe of the search and a lock that `kvant rebuild` makes
    the same bytes from. An interrupted run takes up where it stopped. The projector of a model that sees or hears lies
    beside it as mmproj-*.gguf, and counts within the limits.

    Of a model that makes vectors of texts, variants are compared by the cosine distance of these instead, at most 0.01
    without any limit, and by how fast they read.

    \b
    Examples:
      kvant optimize SmolLM2-135M --max-size 100MB
      kvant optimize SmolLM2-135M --max-size 100MB --keep smollm2:100mb
      kvant optimize SmolLM2-135M --max-size 100MB --time 5min
      kvant optimize SmolLM2-135M --max-size 90MB --calibrate self
      kvant optimize SmolLM2-135M --max-size 90MB --calibrate none
      kvant optimize SmolLM2-135M --max-size 90MB --formats gguf,mlx,onnx
      kvant optimize model.gguf --device phone-6gb --context 8192
      kvant optimize SmolLM2-135M --max-kld 0.02 --imatrix imatrix.gguf -o out
      kvant optimize all-MiniLM-L6-v2 --max-distance 0.005
      kvant optimize --recipe recipe.yaml -o out
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.recipes.optimize.keep import check_name
    from kvant.recipes.optimize.keep import keep as store_report
    from kvant.recipes.optimize.pipeline import optimize as run

    _check(options)
    request = _asked(options)
    if recipe is not None:
        request = _from_recipe(recipe, model, request, options)
    if keep is not None:
        check_name(keep, request.formats, overwrite=overwrite)
    with console.progress(quiet=json) as progress:
        report = run(request, progress=progress)
        if keep is not None:
            store_report(report, keep, progress=progress)
    if json:
        console.print_json(report)
        return
    show(report)
    if keep is not None:
        console.say(f"Kept in the store: kvant run {keep}")


def _asked(options: typer.Context) -> "Request":
    """Return what the command line asks for."""
    from kvant.recipes.optimize.request import request_of

    given = {field.name: _value(field, options.params[name_of(options, field.option)]) for field in FIELDS}
    return request_of({**given, "source": given["source"] or Path()})


def _value(field: Field, given: Any) -> Any:
    """Return an option's value as a request has it."""
    if field.kind is Kind.EACH:
        return tuple(given or ())
    if field.kind is Kind.LIST:
        return tuple(name.strip() for name in (given or "").split(",") if name.strip())
    if given is None:
        return None
    if field.kind is Kind.BYTES:
        return parse_bytes(given)
    if field.kind is Kind.TIME:
        return parse_time(given)
    return Path(given) if field.kind is Kind.PATH else given


def _check(options: typer.Context) -> None:
    """Refuse a call that names no model, or an option that another one makes useless."""
    given = options.params
    if given["model"] is None and given["recipe"] is None:
        raise typer.BadParameter("give a model, or a recipe that names one (--recipe FILE).")
    here = {field.name: given[name_of(options, field.option)] for field in FIELDS}
    for field in FIELDS:
        is_missing = field.needs is not None and here[field.needs] in ABSENT and given["recipe"] is None
        if is_missing or (field.unless is not None and here[field.unless] is not None):
            refuse(options, (name_of(options, field.option),), field.why)


def _from_recipe(path: Path, model: Path | None, given: "Request", options: typer.Context) -> "Request":
    """Return what a recipe asks for; the command line says only what belongs to one machine or one run.

    A recipe that options changed silently would not be what was run, so other options are refused.
    """
    from kvant.recipes.optimize.request import on_this_machine
    from kvant.recipes.optimize.schema import read_recipe

    for field in FIELDS:
        if field.place is None or field.is_argument:
            continue
        if is_given(options, name_of(options, field.option)):
            raise typer.BadParameter(
                f"{field.option} is the recipe's to say. Write it into {path.name}, or leave --recipe out."
            )
    return on_this_machine(read_recipe(path, model), given)


def show(report: "Report") -> None:
    """Print what was measured, what was taken and why."""
    from kvant.recipes.measure.sample import as_lines
    from kvant.recipes.measure.words import tokenizer_warnings

    measure = report.loss_in
    console.table(
        f"{report.model.name}: {len(report.variants)} measured on {report.text.amount} of {report.text.name}",
        _columns(measure),
        [_row(v, measure) for v in report.variants],
    )
    console.notes(report.remarks)
    for read in report.tokenizers:
        for line in tokenizer_warnings(read.path, read, measure):
            console.say(line)
    if report.skipped:
        console.say(
            f"Not measured: {len(report.skipped)} variants that do not fit or cannot win; report.html says why."
        )
    for variant in report.variants:
        if variant.cost:
            console.say(f"{variant.preset} is {variant.cost}.")
    for line in as_lines(report.samples) if report.samples else ():
        console.say(line)
    console.say(f"Pick: {report.reason}")
    for taken in report.formats:
        best = "the best of all formats; " if taken.is_best else ""
        loss = f"mean {measure.noun} {measure.number(measure.mean_of(taken) or 0.0)}"
        console.say(f"{taken.format}: {best}{taken.type}, {format_bytes(taken.size_bytes)}, {loss}: {taken.path}")
    for reason in report.left_out:
        console.say(f"Left out: {reason}")
    if report.fallbacks:
        console.say(f"Fallbacks: {report.fallbacks}")
    if report.projector:
        eyes = report.projector
        console.say(
            f"With its projector, {format_bytes(eyes.size_bytes)} ({eyes.kind}, {eyes.type}), which counts within the "
            f"limits: {Path(report.path).with_name(eyes.file)}"
        )
    console.say(f"Written: {report.path}, with report.html, report.json, its lock and the recipe beside it.")


def _columns(measure: "Measure") -> tuple[str, ...]:
    loss = (f"mean {measure.noun}", "± SE", f"99 % {measure.noun}")
    return ("variant", "size", "bpw", *loss, *(f.heading for f in measure.figures), measure.speed, "RAM", "")


def _row(v: "MeasuredVariant", measure: "Measure") -> tuple[str, ...]:
    s = v.score
    return (
        v.preset, format_bytes(v.size_bytes), f"{v.bpw:.2f}",
        measure.number(s.loss), measure.number(s.loss_se), measure.high(s.loss_p99),
        *(figure.cell(s) for figure in measure.figures), format_speed(s.speed_tok_s),
        format_bytes(v.memory_bytes),
        "<- pick" if v.is_pick else "front" if v.on_front else "",
    )  # fmt: skip
