"""How much worse a model has become: the distance of its outputs on held-out inputs, or a metric of the user's."""

import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from kvant.errors import KvantError, ValueRangeError
from kvant.recipes.int8.feeds import Feed
from kvant.runtime.ort_process import OrtProcess

TIMED_RUNS, TIMED_FEEDS, WARM_RUNS = 20, 4, 2

RunModel = Callable[[Feed], dict[str, np.ndarray]]
Metric = Callable[[RunModel], float]
"""`metric(run)` gives a score, larger is better; `run(inputs)` gives outputs by name."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one model.

    Attributes:
        drop: What is lost against the float model: cosine distance of the worst output, mean over the held-out runs, or
            the metric's loss.
        snr_db: Signal over noise of all float outputs, dB; None where nothing differs.
        metric: The user's metric; None if there is none.
    """

    drop: float
    snr_db: float | None
    metric: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Measures models against the float model.

    Attributes:
        feeds: Held-out inputs.
        truth: The float model's outputs on them.
        metric: The user's metric, or None.
        baseline: Its value for the float model.
        threads: Threads.
    """

    feeds: tuple[Feed, ...]
    truth: tuple[dict[str, np.ndarray], ...]
    metric: Metric | None
    baseline: float | None
    threads: int

    def head(self, count: int) -> "Judge":
        """Return one that looks at the first runs alone, and at no metric."""
        return Judge(
            feeds=self.feeds[:count], truth=self.truth[:count], metric=None, baseline=None, threads=self.threads
        )

    def score(self, path: Path) -> Score:
        """Measure a model that lies in a folder of its own.

        Raises:
            EngineError: ONNX Runtime refuses it.
        """
        with OrtProcess(reads=(path.parent,)) as engine:
            engine.open_graph(path, n_threads=self.threads)
            found = [engine.run(feed)[0] for feed in self.feeds]
            value = None if self.metric is None else call_metric(self.metric, lambda feed: engine.run(feed)[0])
        distances = [distance(a, b) for a, b in zip(self.truth, found, strict=True)]
        drop = statistics.fmean(distances) if value is None else (self.baseline or 0.0) - value
        return Score(drop=drop, snr_db=snr_db(self.truth, found), metric=value)


def make_judge(path: Path, feeds: tuple[Feed, ...], metric: Metric | None, *, threads: int) -> Judge:
    """Run the float model on the held-out inputs."""
    with OrtProcess() as engine:
        engine.open_graph(path, n_threads=threads)
        truth = tuple(engine.run(feed)[0] for feed in feeds)
        baseline = None if metric is None else call_metric(metric, lambda feed: engine.run(feed)[0])
    bad = sorted({name for run in truth for name, a in run.items() if a.dtype.kind == "f" and not np.isfinite(a).all()})
    if bad:
        raise ValueRangeError(f"{path}: output {bad[0]!r} is NaN or infinite on held-out inputs. Give typical inputs.")
    return Judge(feeds=feeds, truth=truth, metric=metric, baseline=baseline, threads=threads)


def latency_s(path: Path, feeds: Sequence[Feed], *, threads: int) -> float:
    """Return the median seconds of a run over some inputs, after runs that are not counted."""
    medians = []
    with OrtProcess() as engine:
        engine.open_graph(path, n_threads=threads)
        for feed in feeds[:TIMED_FEEDS]:
            engine.run(feed, repeats=WARM_RUNS)
            medians.append(statistics.median(engine.run(feed, repeats=TIMED_RUNS)[1]))
    return statistics.fmean(medians)


def distance(truth: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """Return how far a run's outputs are from the float model's: of the worst one, 0 for the same, 1 for unrelated.

    Cosine distance of floats, share of different values of integers; 1 where the shape has changed.
    """
    worst = 0.0
    for name, a in truth.items():
        b = found.get(name)
        if b is None or a.shape != b.shape:
            return 1.0
        if a.dtype.kind != "f":
            worst = max(worst, float(np.mean(a != b)) if a.size else 0.0)
            continue
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        if not np.isfinite(y).all():
            return 1.0
        scale = float(np.sqrt((x @ x) * (y @ y)))
        worst = max(worst, 1.0 - float(x @ y) / scale if scale else float(bool(np.any(x != y))))
    return max(0.0, worst)


def snr_db(truth: Sequence[dict[str, np.ndarray]], found: Sequence[dict[str, np.ndarray]]) -> float | None:
    """Return signal over noise of all float outputs together, dB; None where nothing differs."""
    signal = noise = 0.0
    for one, other in zip(truth, found, strict=True):
        for name, a in one.items():
            b = other.get(name)
            if a.dtype.kind == "f" and b is not None and a.shape == b.shape:
                x = a.astype(np.float64).ravel()
                e = b.astype(np.float64).ravel() - x
                signal, noise = signal + float(x @ x), noise + float(e @ e)
    return 10 * float(np.log10(signal / noise)) if noise and signal else None


def load_metric(entry: str) -> Metric:
    """Import `module:function` from the current directory or what is installed.

    Raises:
        KvantError: There is none.
    """
    module, _, name = entry.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name) if module and name else None
    except (ImportError, AttributeError) as error:
        raise KvantError(f"--metric {entry}: cannot be imported ({error}). Write MODULE:FUNCTION.") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise KvantError(f"--metric {entry}: is no function. Write MODULE:FUNCTION.")
    return found  # type: ignore[no-any-return]


def call_metric(metric: Metric, run: RunModel) -> float:
    """Return a metric's value.

    Raises:
        ValueRangeError: It is not a finite number.
    """
    value = metric(run)
    if not isinstance(value, int | float | np.floating) or not np.isfinite(value):
        raise ValueRangeError(f"--metric: gave {value!r}, not a finite number. Return a score, larger is better.")
    return float(value)
