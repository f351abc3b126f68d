"""Quantize any ONNX model to int8: check, prepare, search, measure, write.

model.onnx ── read_onnx ── prepare ── Search(settings, nodes) ── OUT.onnx + what it costs
data ──────── calibration 3/4 ─────────┘        held-out 1/4 ──────────┘
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from kvant.devices.limits import cores
from kvant.devices.providers import Provider, provider
from kvant.errors import BudgetError, EngineError, FormatError, KvantError, UnsupportedFormatError, ValueRangeError
from kvant.files import atomic_write, check_output
from kvant.formats.onnx.reader import data_files, read_onnx
from kvant.progress import SILENT, Progress
from kvant.recipes.int8.drop import Judge, Score, latency_s, load_metric, make_judge
from kvant.recipes.int8.feeds import read_feeds
from kvant.recipes.int8.left import LeftNode, check_some, check_weights, left_float
from kvant.recipes.int8.search import Found, NodeNoise, Search, Tools, Trial
from kvant.runtime.ort_messages import Port, Settings
from kvant.runtime.ort_process import OrtProcess

TYPES = ("int8-dynamic", "int8-static", "int8")
"""`int8` tries both ways and keeps the faster one of those that keep the limit."""

STEPS = ("opset", "slim", "script", "ort")
MIN_PREPARED_SNR_DB = 60.0
"""A step of preparation that changes outputs by more than this is not taken."""

MAX_DROP = 0.01
MAX_PROTO_BYTES = 1_900_000_000
"""Larger models are left to weight-only quantization: these tools hold a whole model in one message."""

Method = Literal["auto", "minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("auto", "minmax", "entropy", "percentile")


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """The model before or after.

    Attributes:
        size_bytes: Bytes of its files.
        latency_s: Median seconds of a run; None without data.
        metric: The user's metric; None if there is none.
    """

    size_bytes: int
    latency_s: float | None
    metric: float | None


class Int8Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and what it costs.

    Attributes:
        path: The file.
        kind: `int8-dynamic` or `int8-static`.
        settings: How its operators are quantized.
        prepared: Steps of preparation that were taken.
        skipped: Those that were not, and why.
        n_quantized: Nodes that are int8.
        kept_float: Nodes that would be int8 but stay float to keep the limit, loudest first.
        left_float: Nodes with weights that stay float because the tools or the type do not take them.
        before: The source.
        after: The file.
        score: Loss on held-out runs; None without data.
        max_drop: The limit.
        n_calibration: Runs calibrated on.
        n_held_out: Runs measured on.
        threads: Threads of the measurements.
        trials: All ways that were measured.
        noise: Noise of every node under the best whole-model settings, if nodes had to be chosen.
        wall_s: Seconds it took.
    """

    path: str
    kind: str
    settings: Settings
    prepared: tuple[str, ...]
    skipped: dict[str, str]
    n_quantized: int
    kept_float: tuple[str, ...]
    left_float: tuple[LeftNode, ...]
    before: Side
    after: Side
    score: Score | None
    max_drop: float
    n_calibration: int
    n_held_out: int
    threads: int
    trials: tuple[Trial, ...]
    noise: tuple[NodeNoise, ...]
    wall_s: float


def quantize_int8(
    source: Path,
    kind: str,
    out: Path,
    *,
    data: Path | None = None,
    method: str = "auto",
    max_drop: float = MAX_DROP,
    metric: str | None = None,
    activation: Literal["uint8", "int8"] = "uint8",
    reduce_range: bool = False,
    target: str | None = None,
    threads: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Int8Result:
    """Write an int8 version of an ONNX model that loses no more than a limit.

    Args:
        source: The .onnx file, of floats.
        kind: One of `TYPES`.
        out: File to write.
        data: Inputs to calibrate and measure on; see `read_feeds`. Dynamic quantization works without, unmeasured.
        method: How static ranges are found; `auto` tries MinMax and then Percentile.
        max_drop: Most that may be lost: cosine distance of outputs, or of the metric.
        metric: `module:function` that scores a model, larger is better; see `Metric`.
        activation: Type of activations.
        reduce_range: Weights of 7 bits, for x86 processors without VNNI.
        target: Execution provider it must run on.
        threads: Threads of the measurements; 0 for one per core.
        overwrite: Replace an existing file.
        progress: Told of what is tried.

    Raises:
        FormatError: The model is damaged or hostile, or quantized already.
        ValueRangeError: A type that is not known, or data that do not fit.
        UnsupportedFormatError: None of its operators becomes int8.
        BudgetError: Nothing keeps `max_drop`.
        EngineError: ONNX Runtime refuses the model.
        OutputExistsError: The output exists.
    """
    started = time.monotonic()
    source, out = Path(source), Path(out)
    found_by = _checked(kind, method, data, max_drop)
    check_output(out, overwrite=overwrite, read=(source,))
    kind, activation = for_target(kind, activation, provider(target)) if target else (kind, activation)
    _check_used(kind, found_by, data, metric)
    size = check_source(source)
    threads = threads or cores()
    with tempfile.TemporaryDirectory(prefix="kvant-int8-") as name:
        folder = Path(name)
        feeds = None if data is None else read_feeds(data, inputs_of(source))
        judge = None
        if feeds is not None:
            scorer = load_metric(metric) if metric else None
            judge = make_judge(source, feeds.held_out, scorer, threads=threads)
        with Tools(writes=(folder,)) as tools, _named(source, folder):
            prepared, steps, skipped = prepare(source, folder, judge, tools, progress)
            search = (
                Search(prepared, judge, feeds, folder, max_drop, tools, progress, subject=source)
                if judge and feeds
                else None
            )
            found, kind = _search(search, prepared, kind, found_by, tools, activation, reduce_range)
            left, n_done = left_float(prepared, (*found.trial.nodes, *found.trial.settings.exclude))
            check_some(source, kind, n_done, left)
        made = folder / "chosen.onnx"
        with atomic_write(out, overwrite=overwrite) as file, made.open("rb") as result:
            shutil.copyfileobj(result, file)
    held = feeds.held_out if feeds else ()
    timed = [latency_s(path, held, threads=threads) if held else None for path in (source, out)]
    score = found.trial.score if judge else None
    return Int8Result(
        path=str(out), kind=kind, settings=found.trial.settings, prepared=steps, skipped=skipped,
        n_quantized=len(found.trial.nodes), kept_float=found.trial.settings.exclude, left_float=left,
        before=Side(size_bytes=size, latency_s=timed[0], metric=judge.baseline if judge else None),
        after=Side(size_bytes=out.stat().st_size, latency_s=timed[1], metric=score.metric if score else None),
        score=score, max_drop=max_drop, n_calibration=len(feeds.calibration) if feeds else 0, n_held_out=len(held),
        threads=threads, trials=found.trials, noise=found.noise, wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


@contextlib.contextmanager
def _named(source: Path, folder: Path) -> Iterator[None]:
    """Let messages name the user's model, where tools name a file that was made of it on the way."""
    try:
        yield
    except KvantError as error:
        said = re.sub(rf"(?:{re.escape(str(folder))}/)?(?:prepared-\w+|trial|node)\.onnx", str(source), str(error))
        if said == str(error):
            raise
        raise type(error)(said) from error


def for_target(kind: str, activation: Literal["uint8", "int8"], runs: Provider) -> tuple[str, Literal["uint8", "int8"]]:
    """Return the type and activations that a provider runs of those asked for.

    Raises:
        UnsupportedFormatError: It runs neither, or not the one asked for.
    """
    ways = {"int8-dynamic": runs.dynamic_int8, "int8-static": runs.static_int8}
    wanted = [way for way in ways if kind in ("int8", way)]
    able = [way for way in wanted if ways[way]]
    if not able:
        others = " or ".join(way for way, can in ways.items() if can) or "nothing of int8 operators"
        raise UnsupportedFormatError(
            f"target: {runs.name} does not run {' or '.join(wanted)}; it runs {others}. Change -t or --target."
        )
    only: Literal["uint8", "int8"] = "int8" if runs.activation == "int8" else "uint8"
    return able[0] if len(able) == 1 else kind, only if runs.activation else activation


def check_source(source: Path) -> int:
    """Check a model and return the bytes of its files.

    Raises:
        FormatError: It is damaged, hostile, too large for these tools, quantized already, or no scale holds a weight.
    """
    model = read_onnx(source)
    done = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "MatMulInteger", "QLinearMatMul")]
    if done:
        raise FormatError(f"{source}: is quantized already ({done[0].op_type}). Start from the float model.")
    size = sum(file.stat().st_size for file in data_files(model, source))
    if size > MAX_PROTO_BYTES:
        raise FormatError(
            f"{source}: {size} bytes are above {MAX_PROTO_BYTES}, too many for int8 operators here. "
            "Quantize the weights alone: kvant quantize MODEL --to onnx -t int8."
        )
    check_weights(model, source)
    return size


def inputs_of(source: Path) -> list[Port]:
    """Return the inputs of a checked model."""
    with OrtProcess() as engine:
        return engine.open_graph(source, n_threads=1).inputs


def prepare(
    source: Path, folder: Path, judge: Judge | None, engine: Tools, progress: Progress
) -> tuple[Path, tuple[str, ...], dict[str, str]]:
    """Prepare a model step by step; a step that fails or changes outputs is left out.

    Returns:
        The prepared model, the steps taken, and those left out with the reason.
    """
    current, skipped = source, {}
    taken: list[str] = []
    for step in STEPS:
        out = folder / f"prepared-{step}.onnx"
        try:
            engine.prepare(current, out, step)
            read_onnx(out)
            if judge is not None:
                score = judge.score(out)
                if score.snr_db is not None and score.snr_db < MIN_PREPARED_SNR_DB:
                    raise EngineError(f"{out.name}: changes outputs (signal to noise {score.snr_db:.0f} dB).")
        except (EngineError, FormatError) as error:
            skipped[step] = str(error).replace(f"{folder}/", "")
            progress.say(f"Preparation without {step}: {skipped[step]}")
            engine.restart()
            continue
        current = out
        taken.append(step)
    return current, tuple(taken), skipped


def _search(
    search: Search | None, prepared: Path, kind: str, method: Method, tools: Tools,
    activation: Literal["uint8", "int8"], reduce_range: bool,
) -> tuple[Found, str]:  # fmt: skip
    """Search one way, or both, and leave the best model in `chosen.onnx`; without data there is one way."""
    if search is None:
        settings = Settings(kind="dynamic", per_channel=True, reduce_range=reduce_range)
        nodes = tools.quantize(prepared, prepared.with_name("chosen.onnx"), settings, (), prepared.with_name("unused"))
        trial = Trial(settings=settings, nodes=tuple(nodes), score=None)
        return Found(trial=trial, trials=(trial,), noise=()), "int8-dynamic"
    best: tuple[float, Found, str] | None = None
    nothing: tuple[Found, str] | None = None
    failures: list[EngineError | BudgetError] = []
    for way in ("int8-dynamic", "int8-static") if kind == "int8" else (kind,):
        try:
            found = search.run(ladder(way, method, activation, reduce_range))
        except (EngineError, BudgetError) as error:
            failures.append(error)
            continue
        if not left_float(prepared, found.trial.nodes)[
            1
        ]:  # loses nothing and is as fast as the model, since it is the model
            nothing = nothing or (found, way)
            continue
        seconds = 0.0
        if kind == "int8":
            seconds = latency_s(search.best, search.feeds.held_out, threads=search.judge.threads)
        if best is None or seconds < best[0]:
            best = (seconds, found, way)
            search.best.replace(search.folder / "chosen.onnx")
    if best is None and nothing is not None:
        return nothing
    if best is None:
        raise failures[-1]
    return best[1], best[2]


def ladder(kind: str, method: Method, activation: Literal["uint8", "int8"], reduce_range: bool) -> Sequence[Settings]:
    """Return whole-model settings in the order they are tried: cheapest to run first."""
    if kind == "int8-dynamic":
        return [Settings(kind="dynamic", per_channel=c, reduce_range=reduce_range) for c in (False, True)]
    methods: tuple[Literal["minmax", "entropy", "percentile"], ...] = ("minmax", "percentile")
    if method != "auto":
        methods = (method,)
    ways: list[tuple[bool, Literal["all", "weights"]]] = [(False, "all"), (True, "all"), (True, "weights")]
    return [
        Settings(
            kind="static", per_channel=per_channel, method=m, activation=activation, operators=operators,
            reduce_range=reduce_range,
        )
        for m in methods
        for per_channel, operators in ways
    ]  # fmt: skip


def _check_used(kind: str, method: Method, data: Path | None, metric: str | None) -> None:
    """Refuse what would be accepted without a use.

    Raises:
        ValueRangeError: A metric without data, or a method without static ranges.
    """
    if metric is not None and data is None:
        raise ValueRangeError(f"metric: {metric} is measured on inputs, and none are given. Pass --calibration-data.")
    if method != "auto" and kind == "int8-dynamic":
        raise ValueRangeError(
            f"calibration method: {method} finds static ranges, and int8-dynamic has none. Leave it out."
        )


def _checked(kind: str, method: str, data: Path | None, max_drop: float) -> Method:
    """Check arguments and return the method."""
    if kind not in TYPES:
        raise ValueRangeError(f"type: {kind!r} is none for an ONNX model. Use one of {', '.join(TYPES)}.")
    known = next((m for m in METHODS if m == method), None)
    if known is None:
        raise ValueRangeError(f"calibration method: {method!r} is not known. Use one of {', '.join(METHODS)}.")
    if data is None and kind != "int8-dynamic":
        raise ValueRangeError(
            f"{kind}: needs typical inputs to find ranges on. Pass --calibration-data FILE.npz or a directory of them, "
            "or use -t int8-dynamic."
        )
    if not max_drop >= 0:
        raise ValueRangeError(f"max drop: {max_drop} is negative. Use 0.01 for one per cent.")
    return known
