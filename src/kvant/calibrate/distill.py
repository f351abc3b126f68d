"""Distillation of what costs no bytes: scales of blocks and norm weights, trained with KL to the full-precision model.

A step follows the mean gradient over some windows, divided by the curvature that the calibration's statistics predict
for each change (a diagonal Gauss-Newton step), with momentum. Windows are split: most are trained on, a guard of every
domain is only measured. Training ends early when the guard no longer improves, and the best state in which no domain of
the guard is worse than before is kept; if there is none, nothing changes.

What is kept follows from the number of its step alone: the order of windows is drawn from a seed, and every sum has a
fixed order. Asked for that number of steps, another machine finds the same bytes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvant.calibrate.decoder import GROUPS
from kvant.calibrate.divergence import Teacher, divergences, gradients, teach
from kvant.calibrate.statistics import Statistics
from kvant.calibrate.student import Changes, Student
from kvant.errors import ValueRangeError
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.tensors import Tensor

BATCH_WINDOWS = 8
"""Windows per step."""

RATE, MOMENTUM = 0.02, 0.9
RIDGE = 0.1
"""Share of the mean curvature of a tensor's changes added to each: blocks that hardly matter would run off."""

CHECK_STEPS = 4
"""Steps between looks at the guard."""

PATIENCE = 3
"""Looks without a better state after which training ends."""

GUARD_SHARE = 8
"""Every eighth window of a domain guards it, but one at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The guard's mean KL divergence by domain after some steps, nats per token."""

    step: int
    kld: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean over domains."""
        return sum(self.kld.values()) / len(self.kld)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What training gave.

    Attributes:
        tensors: All tensors of the model, in file order.
        step: Steps after which they were kept; 0 if nothing was better than the beginning.
        looks: What the guard said, the beginning first.
    """

    tensors: list[Tensor]
    step: int
    looks: tuple[Look, ...]


def distill(
    quantized: Model, original: Model, statistics: Statistics, tokens: np.ndarray, domains: Sequence[str], *,
    seconds: float | None = None, steps: int | None = None, seed: int = 0, threads: int = 0,
    progress: Progress = SILENT,
) -> Distilled:  # fmt: skip
    """Train a quantized model's scales and norms.

    Args:
        quantized: The model to train.
        original: The full-precision model.
        statistics: Of the original, on text like the tokens.
        tokens: Token ids, int32 [windows, tokens].
        domains: Domain of each window.
        seconds: How long to train, or
        steps: How many steps to repeat of an earlier training.
        seed: Of the order of windows.
        threads: Threads; 0 for one per core. Their number does not change a bit.
        progress: Told of seconds or steps.

    Raises:
        UnsupportedFormatError: The model cannot be run here.
        ValueRangeError: Neither or both of `seconds` and `steps`, or fewer than two windows.
    """
    if (seconds is None) == (steps is None) or len(tokens) < 2 or len(tokens) != len(domains):
        raise ValueRangeError(
            f"distill: {len(tokens)} windows, {len(domains)} domains, {seconds} seconds and {steps} steps do not fit. "
            "Give two windows or more, a domain for each, and either seconds or steps."
        )
    student = Student(quantized, threads=threads)
    guard, trained = split(domains)
    teacher = teach(original, tokens, threads=threads, progress=progress)
    descent = Descent(student, curvatures(student, statistics))
    batches = order(trained, seed)
    if steps is not None:
        for _ in range(steps):
            descent.step(gradients(student, teacher, next(batches))[0])
        return Distilled(tensors=student.tensors(), step=steps, looks=())
    return _train(descent, teacher, guard, batches, seconds or 0.0, progress)


def split(domains: Sequence[str]) -> tuple[dict[str, list[int]], list[int]]:
    """Return the windows that guard each domain, and those to train on; a domain of one window is only trained on.

    Raises:
        ValueRangeError: Every domain has one window, so nothing is left to guard.
    """
    windows = {name: [i for i, domain in enumerate(domains) if domain == name] for name in sorted(set(domains))}
    guard = {name: found[GUARD_SHARE // 2 :: GUARD_SHARE] or found[-1:] for name, found in windows.items() if found[1:]}
    if not guard:
        raise ValueRangeError("distill: no domain has two windows, so none can be guarded. Use a longer text.")
    kept = {window for found in guard.values() for window in found}
    return guard, [window for window in range(len(domains)) if window not in kept]


def order(windows: Sequence[int], seed: int) -> Iterator[list[int]]:
    """Yield batches of windows without end: all of them in a drawn order, then all in another."""
    chance, waiting = np.random.default_rng(seed), list[int]()
    while True:
        while len(waiting) < BATCH_WINDOWS:
            waiting += chance.permutation(windows).tolist()
        yield waiting[:BATCH_WINDOWS]
        waiting = waiting[BATCH_WINDOWS:]


def curvatures(student: Student, statistics: Statistics) -> Changes:
    """Return the curvature of the KL divergence that statistics predict for every change, shaped like the changes.

    The sum over a matrix's rows and columns of (weight's change)² * Q_jj / rows, Q being its risk; errors of different
    columns are taken for independent. A norm's are those of the columns it scales.
    """
    found: Changes = {}
    columns = {}
    for name in statistics.names:
        if (name, 0) in student.changes:
            risk = statistics.risk(name).diagonal() / student.model.tensors[name].shape[0]
            parts, columns[name] = student.powers(name, np.ascontiguousarray(risk, np.float32))
            found.update(parts)
    followers = {"output_norm.weight": [student.decoder.head_name]}
    for layer in range(student.decoder.n_layers):
        for norm, group in (("attn_norm", GROUPS[0]), ("ffn_norm", GROUPS[2])):
            followers[f"blk.{layer}.{norm}.weight"] = [f"blk.{layer}.{linear}.weight" for linear in group]
    for norm, names in followers.items():
        known = [columns[name] for name in names if name in columns]
        if known and (norm, 0) in student.changes:
            found[norm, 0] = np.asarray(sum(known[1:], start=known[0]))
    return found


class Descent:
    """Steps with momentum along gradients divided by curvatures; changes without a curvature stay.

    Attributes:
        student: What is trained.
        steps: Steps done.
    """

    def __init__(self, student: Student, curvature: Changes) -> None:
        self.student, self.steps = student, 0
        self._curvature = {key: value + np.float32(RIDGE) * value.mean() for key, value in curvature.items()}
        self._velocity = {key: np.zeros_like(value) for key, value in curvature.items()}

    def step(self, gradient: Changes) -> None:
        """Follow a gradient, shaped like the changes."""
        for key, curvature in self._curvature.items():
            velocity = self._velocity[key]
            velocity *= np.float32(MOMENTUM)
            velocity += gradient[key]
            self.student.changes[key] -= np.float32(RATE) * velocity / np.maximum(curvature, np.finfo(np.float32).tiny)
        self.steps += 1


def _train(
    descent: Descent, teacher: Teacher, guard: dict[str, list[int]], batches: Iterator[list[int]], seconds: float,
    progress: Progress,
) -> Distilled:  # fmt: skip
    """Train until time is up or the guard stops improving, and return the best state."""
    student, began, told = descent.student, time.monotonic(), 0
    looks = [_look(student, teacher, guard, 0)]
    best, kept = 0, student.tensors()
    progress.start("distill", round(seconds), "s")
    while time.monotonic() - began < seconds and len(looks) - 1 - best // CHECK_STEPS < PATIENCE:
        for _ in range(CHECK_STEPS):
            descent.step(gradients(student, teacher, next(batches))[0])
        looks.append(_look(student, teacher, guard, descent.steps))
        if is_better(looks[-1], looks[best // CHECK_STEPS], looks[0]):
            best, kept = descent.steps, student.tensors()
        progress.say(f"distill: {descent.steps} steps, KLD of the guard {looks[-1].mean:.5f} after {looks[0].mean:.5f}")
        elapsed = min(round(time.monotonic() - began), round(seconds))
        progress.advance("distill", elapsed - told)
        told = elapsed
    progress.finish("distill")
    return Distilled(tensors=kept, step=best, looks=tuple(looks))


def is_better(look: Look, best: Look, first: Look) -> bool:
    """Whether a state is closer than the best so far, and no domain farther than at the beginning."""
    return look.mean < best.mean and all(look.kld[name] <= first.kld[name] for name in first.kld)


def _look(student: Student, teacher: Teacher, guard: dict[str, list[int]], step: int) -> Look:
    return Look(step=step, kld={name: float(divergences(student, teacher, at).mean()) for name, at in guard.items()})
