"""What a model's matrices see and how much their errors matter, measured once per model and text and kept.

text ── windows of tokens ──┬── llama.cpp, which shows its products (calibrate/engine.py) ────────┬── Statistics
                            └── forward and backward, layer by layer (calibrate/gradients.py) ────┘
Statistics ──┬── importance: what upstream's encoders use
             ├── curvatures: what the encoders under a full Hessian use (quant/curvature.py)
             └── rounding errors: what each block type would cost each tensor (recipes/measure/rounding.py)
"""

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from kvant._version import __version__
from kvant.calibrate import engine
from kvant.calibrate.statistics import BORROWED, Statistics, digest_now
from kvant.devices.limits import cores, spare_bytes
from kvant.errors import MissingDependencyError, ValueRangeError
from kvant.evaluate.corpora import Corpus, corpus, text_file
from kvant.evaluate.windows import Windows, cut
from kvant.files import cache_dir
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Importance
from kvant.quant.roles import is_quantizable
from kvant.recipes import cache
from kvant.recipes.measure.base import f32_file
from kvant.recipes.measure.selftext import read_tokens, self_windows
from kvant.recipes.measure.textname import BUNDLED, SELF
from kvant.runtime.process import EngineProcess

TOKENS_SUFFIX = ".npz"
WINDOW_TOKENS = 512
WINDOWS = 64
SEED = 1

Way = Literal["engine", "gradients"]
"""What measures the matrices."""

STATISTICS_FORMAT = 3
"""Raised when the same inputs give other statistics than before, so that older ones in the cache are left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was measured of a model on a text.

    Attributes:
        directory: Where everything about it is kept.
        importance: Mean of x² by input channel, as upstream measures it.
        curvatures: Hessians that encoders minimise the error under.
        statistics: All of it.
        way: What measured it.
        text: The text.
        windows: Its windows.
        n_windows: Most windows of it that were asked for.
        seed: Of the labels drawn.
        sha256: Digest of the statistics' bytes.
        unseen: Matrices that could be quantized and took no part: heads that guess ahead, for one.
    """

    directory: Path
    importance: Importance
    curvatures: Curvatures
    statistics: Statistics
    way: Way
    text: Corpus
    windows: Windows
    n_windows: int
    seed: int
    sha256: str
    unseen: tuple[str, ...] = ()

    def in_words(self) -> list[str]:
        """Say what it rests on, and which experts saw too little of it."""
        who = "llama.cpp" if self.way == "engine" else "gradients"
        said = [f"Calibrated on {self.windows.tokens.size:,} tokens of {self.text.label}, measured by {who}."]
        counts = self.statistics.expert_tokens()
        few = [name for name, tokens in counts.items() if (tokens < BORROWED).any()]
        if few:
            n_few = sum(int((tokens < BORROWED).sum()) for tokens in counts.values())
            said.append(
                f"{n_few} of {sum(map(len, counts.values()))} experts saw fewer than {BORROWED} tokens, so that they "
                f"borrow from the others (first: {few[0]}). A longer --calibrate text helps."
            )
        if self.unseen:
            said.append(
                f"{len(self.unseen)} matrices (first: {self.unseen[0]}) take no part in reading text, so nothing was "
                "measured of them: fitted variants hold them as they are."
            )
        return said


def calibrate(
    model: Model, source: str | Corpus, *, windows: int = WINDOWS, seed: int = SEED, way: Way = "engine",
    kept: Path | None = None, ram_bytes: int | None = None, threads: int = 0, progress: Progress = SILENT,
) -> Calibration:  # fmt: skip
    """Measure a model on calibration text, or take what was measured before from the cache.

    Args:
        model: The full-precision model.
        source: `bundled` for kvant's own calibration text, `self` for text that the model writes itself, the path of a
            UTF-8 file or of a token file (selftext.py), or a text; see textname.py.
        windows: Most windows of 512 tokens.
        seed: Of the labels that are drawn from the model's own predictions, and of the text it writes.
        way: `engine` for what llama.cpp shows of any model; `gradients` for a pass forward and backward with torch,
            of the families that kvant differentiates.
        kept: Directory of statistics that were measured before, in place of the cache.
        ram_bytes: Memory that sums may take at a time; None for `spare_bytes`. Gradients take that of a layer.
        threads: Threads; 0 for one per core. Their number does not change a bit of what gradients give.
        progress: Told of layers.

    Raises:
        MissingDependencyError: Gradients are asked for, and torch is not installed.
        FormatError: The text cannot be read.
        EngineError: llama.cpp cannot run the model.
        UnsupportedFormatError: Gradients are asked for, of an architecture that is not differentiated here.
        ValueRangeError: The text is shorter than a window.
    """
    check_way(way)
    base, text, cuts = read_text(model, source, windows=windows, seed=seed, threads=threads, progress=progress)
    directory = kept or directory_of(base, cuts, way, seed)
    with cache.alone("measures a model for calibration", str(directory)):
        if way == "gradients":
            from kvant.calibrate import gradients  # needs torch, which a base install does without

            found = gradients.collect(
                model, cuts.tokens, domain_weights(cuts), directory=directory, seed=seed, threads=threads,
                progress=progress,
            )  # fmt: skip
        else:
            found = engine.collect(
                f32_file(model, progress=progress)[0], model, cuts.tokens, domain_weights(cuts),
                domains=cuts.domains, directory=directory, threads=threads or cores(),
                ram_bytes=ram_bytes or spare_bytes(), progress=progress,
            )  # fmt: skip
    if kept is not None:
        found = dataclasses.replace(found, sha256=digest_now(directory))
    return Calibration(
        directory=directory,
        importance=found.importance((text.label,)),
        curvatures=Curvatures(
            names=found.names, hessian=found.moments,
            sha256=found.sha256, text_sha256=text.sha256, n_tokens=int(cuts.tokens.size), expert=found.expert,
        ),
        statistics=found,
        unseen=tuple(
            name for name, tensor in model.tensors.items()
            if name not in found.names and is_quantizable(name, tensor.shape, model.architecture)
        ),
        way=way, text=text, windows=cuts, n_windows=windows, seed=seed, sha256=found.sha256,
    )  # fmt: skip


def directory_of(base: str, windows: Windows, way: Way, seed: int = SEED) -> Path:
    """Return where the statistics of a model on windows of text are kept, whether they are there or not.

    Args:
        base: The model's identity.
        windows: The text.
        way: What measures them.
        seed: Of the labels drawn, which only gradients use.
    """
    key = cache.digest(
        "statistics", STATISTICS_FORMAT, __version__, base, windows.tokens.tobytes(), windows.domains,
        seed if way == "gradients" else way,
    )  # fmt: skip
    return cache_dir("statistics") / key[:32]


def check_way(way: str) -> None:
    """Refuse what is no way to measure, or cannot be gone here.

    Raises:
        ValueRangeError: It is none.
        MissingDependencyError: Gradients are asked for, and torch is not installed.
    """
    if way not in get_args(Way):
        raise ValueRangeError(f"statistics: {way} is no way to measure a model. Use {' or '.join(get_args(Way))}.")
    if way == "gradients" and find_spec("torch") is None:
        raise MissingDependencyError(
            "torch: is not installed, and gradients need it. Install it with: pip install 'kvant[calibrate]', or leave "
            "out --statistics gradients."
        )


def read_text(
    model: Model, source: str | Corpus, *, windows: int, seed: int = SEED, threads: int = 0,
    progress: Progress = SILENT,
) -> tuple[str, Corpus, Windows]:  # fmt: skip
    """Return a model's identity, a calibration text and its first windows; see `calibrate`."""
    if source == SELF:
        base_file, base = f32_file(model, progress=progress)
        return base, *self_windows(
            model, base_file, base, context=WINDOW_TOKENS, count=windows, seed=seed, threads=threads or cores(),
            progress=progress,
        )  # fmt: skip
    is_text = isinstance(source, str) and not source.endswith(TOKENS_SUFFIX)
    text = calibration_text(source) if isinstance(source, str) and is_text else source
    base_file, base = f32_file(model, progress=progress)
    with EngineProcess() as engine:
        engine.open(base_file, n_ctx=WINDOW_TOKENS, n_threads=1, vocab_only=True)
        if not isinstance(text, Corpus):
            return base, *read_tokens(Path(text), engine, context=WINDOW_TOKENS)
        return base, text, cut(engine, text, context=WINDOW_TOKENS, chunks=windows)


def calibration_text(source: str) -> Corpus:
    """Return the text that `bundled` or a path stands for.

    Raises:
        FormatError: The file is absent, empty or not UTF-8.
    """
    return corpus("default", "calibration") if source == BUNDLED else text_file(Path(source))


def domain_weights(windows: Windows) -> np.ndarray:
    """Weight of each window, float64 [windows]: every domain counts the same, whatever its share of the text."""
    names, counts = np.unique(windows.domains, return_counts=True)
    share = dict(zip(names.tolist(), (1 / counts).tolist(), strict=True))
    return np.array([share[domain] for domain in windows.domains], np.float64)
