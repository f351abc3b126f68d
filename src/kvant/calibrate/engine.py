"""Statistics of any model from llama.cpp itself: what its matrices are multiplied with, and what errors in them do.

No torch and no gradients: the engine's evaluation callback shows every product (runtime/observer.py), whatever the
architecture. Second moments are summed in passes over all windows, as many matrices at a time as memory allows; what
errors in each matrix do to the predictions is tried in probes.py.

    H = Σ w x xᵀ, token weights of sum 1        of stacked experts one for each, over the tokens that came to it

Of keys and values, w is also 1 + what attention the token gets over the mean: the squared shares that all queries of
all heads give it. That stands for the gradients at their products, which come back through attention. Second moments of
keys and values that gradients weigh (gradients.py) agree with these by .80 to .87 (cosine, SmolLM2's layers 3 to 5),
with those of equal tokens by .15.

Sums depend on the instructions of the machine and are not the same bytes everywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvant.calibrate.parts import Part, leaders_of, open_watched, passes, take_part
from kvant.calibrate.probes import Probes
from kvant.calibrate.statistics import Statistics, digest_of, file_of, save, squares_of
from kvant.errors import ValueRangeError
from kvant.files import atomic_write
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.runtime import messages
from kvant.runtime.observer import LOOKUP
from kvant.runtime.process import EngineProcess

MIRRORED_ROWS = 512
"""Rows of a symmetric matrix that are filled up at a time."""


def collect(
    base: Path, model: Model, tokens: np.ndarray, window_weights: np.ndarray, *, domains: Sequence[str] = (),
    directory: Path, threads: int, ram_bytes: int, progress: Progress = SILENT,
) -> Statistics:  # fmt: skip
    """Run a model over windows of tokens and sum up what every matrix sees; then try what errors in it do.

    What is finished is not measured again by another call with the same inputs.

    Args:
        base: GGUF of the model that the engine runs.
        model: The same model.
        tokens: Token ids, int32 [windows, tokens].
        window_weights: How much each window counts, float64 [windows], not negative.
        domains: Kind of text of each window; one kind if empty.
        directory: Where the statistics go, of these inputs alone; made if absent.
        threads: Threads of the engine and of the sums.
        ram_bytes: Memory that sums may take at a time; at least the largest matrix's is taken.
        progress: Told of windows and probes.

    Raises:
        EngineError: The engine cannot run the file, or shows it otherwise than is known.
        UnsupportedModelError: It multiplies with no matrix of the model.
        KvantError: The disk is full.
    """
    if tokens.ndim != 2 or len(window_weights) != len(tokens) or not window_weights.sum() > 0:
        raise ValueRangeError(
            f"tokens: {list(tokens.shape)} with {len(window_weights)} window weights of sum {window_weights.sum():g}. "
            "Give [windows, tokens] and a weight for each window."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with EngineProcess() as engine:
        open_watched(engine, base, n_ctx=tokens.shape[1], threads=threads)
        parts = take_part(engine, model, tokens[0])
        waiting = [part for part in leaders_of(parts) if not _is_finished(directory, part)]
        for number, group in enumerate(groups := list(passes(waiting, ram_bytes)), 1):
            task = "statistics" if len(groups) == 1 else f"statistics {number}/{len(groups)}"
            _sum_up(engine, group, tokens, window_weights, directory, task, progress)
        is_new = Probes(engine, model, parts, tokens, domains or [""] * len(tokens), directory, progress).run()
    return Statistics(
        directory=directory, way="engine",
        groups={part.name: part.leader for part in parts if part.role != LOOKUP},
        lookups={part.name: part.name for part in parts if part.role == LOOKUP},
        n_windows=tokens.shape[0], n_tokens=tokens.shape[1],
        sha256=digest_of(directory, is_new=bool(waiting) or is_new),
    )  # fmt: skip


def _sum_up(
    engine: EngineProcess, group: Sequence[Part], tokens: np.ndarray, window_weights: np.ndarray, directory: Path,
    task: str, progress: Progress,
) -> None:  # fmt: skip
    shares = window_weights / (window_weights.sum() * tokens.shape[1])
    engine.sum_up(
        [messages.Sum(part.name, part.columns, part.stack, moments=True, layer=part.attention) for part in group]
    )
    progress.start(task, tokens.size, "tokens")
    for window, share in zip(tokens, shares, strict=True):
        engine.observe(window, np.full(len(window), share, np.float32))
        progress.advance(task, len(window))
    progress.finish(task)
    for part in group:
        sums, counts = engine.squares(part.name)
        with atomic_write(squares_of(directory, part.name), is_shared=True) as file:
            np.savez(file, sums=sums, counts=counts)
        _write_moments(engine, part, directory)


def _write_moments(engine: EngineProcess, part: Part, directory: Path) -> None:
    """Write float32 [columns, columns]; of a stack the sum of all, and [stack, columns, columns] of each."""
    if part.stack == 1:
        save(file_of(directory, part.name, "hessian"), _whole(engine.moments(part.name, 0, part.columns)))
        return
    shape = (part.stack, part.columns, part.columns)
    total = np.zeros(shape[1:], np.float32)
    with atomic_write(file_of(directory, part.name, "experts"), is_shared=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for expert in range(part.stack):
            moment = _whole(engine.moments(part.name, expert, part.columns))
            total += moment
            file.write(moment.data)
    save(file_of(directory, part.name, "hessian"), total)


def _whole(lower: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix of its lower triangle; in blocks, since a large one is all that memory holds."""
    whole = lower.copy()
    for first in range(0, len(whole), MIRRORED_ROWS):
        last = first + MIRRORED_ROWS
        whole[first:last, last:] = whole[last:, first:last].T
        corner = np.tril(whole[first:last, first:last])
        whole[first:last, first:last] = corner + np.tril(corner, -1).T
    return whole


def _is_finished(directory: Path, part: Part) -> bool:
    return file_of(directory, part.name, "hessian").exists() and squares_of(directory, part.name).exists()
