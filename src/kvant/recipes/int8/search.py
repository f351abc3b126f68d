"""Choose how a model becomes int8: settings first, then the nodes that stay float, by what is measured.

Settings are tried on the whole model: one scale per tensor and one per channel, all operators or those with weights,
and for static ranges the methods that find them. If the best loses too much, every node is quantized alone, its noise
at the model's outputs is measured, and nodes stay float in the order of that noise, as many as it takes: their number
is doubled until the loss is within the limit and then halved in.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from kvant.errors import BudgetError, EngineError
from kvant.progress import Progress
from kvant.recipes.int8.drop import Judge, Score
from kvant.recipes.int8.feeds import Feeds
from kvant.recipes.measure.words import rounded_up
from kvant.runtime.ort_messages import Settings
from kvant.runtime.ort_process import OrtProcess

NOISE_FEEDS = 2
"""Held-out runs that the noise of single nodes is measured on."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A way that was tried.

    Attributes:
        settings: What was done.
        nodes: Nodes that are int8.
        score: What was measured; None if the tools refused it.
        refused: Why they did.
    """

    settings: Settings
    nodes: tuple[str, ...]
    score: Score | None
    refused: str = ""

    @property
    def drop(self) -> float:
        """Its loss; infinite if it was refused."""
        return self.score.drop if self.score else float("inf")


class NodeNoise(msgspec.Struct, frozen=True, kw_only=True):
    """Signal over noise at the model's outputs when one node alone is int8, dB; None where nothing differs."""

    node: str
    snr_db: float | None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the search ended with.

    Attributes:
        trial: The way chosen.
        trials: All that were tried, in order.
        noise: Noise of the nodes under the best settings, loudest first; empty if it was not needed.
    """

    trial: Trial
    trials: tuple[Trial, ...]
    noise: tuple[NodeNoise, ...]


class Tools(OrtProcess):
    """ONNX Runtime's process for preparing and quantizing; a crash of it ends one call and not the work."""

    def restart(self) -> None:
        """Begin anew."""
        self._end()


class Search:
    """One search. Files go into a folder of its own.

    Args:
        source: The prepared float model.
        judge: Measures.
        feeds: What to calibrate and measure on.
        folder: For files that are made on the way.
        max_drop: Most that may be lost.
        tools: Quantize.
        progress: Told of trials.
        subject: The model as the user named it, for messages.
    """

    def __init__(
        self, source: Path, judge: Judge, feeds: Feeds, folder: Path, max_drop: float, tools: Tools,
        progress: Progress, *, subject: Path,
    ) -> None:  # fmt: skip
        self.source, self.judge, self.feeds, self.folder = source, judge, feeds, folder
        self.max_drop, self.progress = max_drop, progress
        self.trials: list[Trial] = []
        self.best: Path = folder / "best.onnx"
        """The model of the last trial that kept the limit."""
        self._tools = tools
        self.subject = subject

    def run(self, ladder: Sequence[Settings]) -> Found:
        """Try whole-model settings in order, then keep nodes float; see the module.

        Raises:
            BudgetError: Nothing keeps the limit.
            EngineError: The tools refuse every way.
        """
        first = len(self.trials)
        for settings in ladder:
            trial = self.attempt(settings)
            if trial.drop <= self.max_drop:
                return Found(trial=trial, trials=tuple(self.trials), noise=())
        best = min(self.trials[first:], key=lambda trial: trial.drop)
        if best.score is None:
            raise EngineError(best.refused)
        noise = self.rank(best)
        loudest = [entry.node for entry in noise if entry.snr_db is not None]
        found = fewest(
            len(loudest),
            lambda count: self.attempt(msgspec.structs.replace(best.settings, exclude=tuple(loudest[:count]))),
            self.max_drop,
        )
        if found is None:
            least = min(t.drop for t in self.trials[first:])
            raise BudgetError(
                f"{self.subject}: no int8 version loses at most {self.max_drop:g}; the best loses "
                f"{rounded_up(least, 5)}. Pass --max-drop {rounded_up(least)} or more, or calibrate on inputs that are "
                f"more like those measured on."
            )
        return Found(trial=found, trials=tuple(self.trials), noise=noise)

    def attempt(self, settings: Settings) -> Trial:
        """Quantize in one way and measure it."""
        out = self.folder / "trial.onnx"
        try:
            nodes = self._quantize(settings, out)
            trial = Trial(settings=settings, nodes=tuple(nodes), score=self.judge.score(out))
        except EngineError as error:
            trial = Trial(settings=settings, nodes=(), score=None, refused=str(error))
        if trial.drop <= self.max_drop:
            out.replace(self.best)
        self.trials.append(trial)
        kept = f", {len(settings.exclude)} nodes float" if settings.exclude else ""
        self.progress.say(f"{settings.label}{kept}: {trial.refused or f'loses {trial.drop:.5f}'}")
        return trial

    def rank(self, best: Trial) -> tuple[NodeNoise, ...]:
        """Return every node's own noise at the outputs, loudest first; a node that cannot be alone counts as loud."""
        out, found = self.folder / "node.onnx", []
        judge = self.judge.head(NOISE_FEEDS)
        self.progress.start("noise of nodes", len(best.nodes), "nodes")
        for node in best.nodes:
            try:
                self._quantize(msgspec.structs.replace(best.settings, only=(node,)), out)
                found.append(NodeNoise(node=node, snr_db=judge.score(out).snr_db))
            except EngineError:
                found.append(NodeNoise(node=node, snr_db=float("-inf")))
            self.progress.advance("noise of nodes", 1)
        self.progress.finish("noise of nodes")
        return tuple(sorted(found, key=lambda n: float("inf") if n.snr_db is None else n.snr_db))

    def _quantize(self, settings: Settings, out: Path) -> list[str]:
        """Quantize; after a crash the next call has a process of its own again."""
        ranges = self.folder / f"ranges-{settings.method}-{settings.activation}-{settings.operators}.json"
        try:
            return self._tools.quantize(self.source, out, settings, self.feeds.calibration, ranges)
        except EngineError:
            self._tools.restart()
            raise


def fewest(total: int, attempt: Callable[[int], Trial], max_drop: float) -> Trial | None:
    """Return the trial with about the fewest nodes kept float that keeps the limit; None if it takes all of them.

    Args:
        total: Nodes that could be kept float.
        attempt: Measures with so many of them kept.
        max_drop: The limit.
    """
    low, high = 0, 1
    found: Trial | None = None
    while found is None and low < total - 1:
        high = min(high, total - 1)
        trial = attempt(high)
        if trial.drop <= max_drop:
            found = trial
        else:
            low, high = high, high * 2
    while found is not None and high - low > max(1, high // 16):
        middle = (low + high) // 2
        trial = attempt(middle)
        if trial.drop <= max_drop:
            found, high = trial, middle
        else:
            low = middle
    return found
