"""Prompt and generation speed, peak memory and energy of an open model."""

import contextlib
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from kvant.runtime.messages import Measured

BUDGET_S = 10.0
RAPL = Path("/sys/class/powercap")
STATUS = Path("/proc/self/status")


class Timed(Protocol):
    """An open model that can be timed."""

    @property
    def n_vocab(self) -> int: ...  # noqa: D102

    def time_prompt(self, tokens: np.ndarray) -> float:
        """Read a prompt anew and return the seconds it took."""
        ...

    def time_steps(self, n: int) -> float:
        """Continue it by `n` tokens, each the most likely, and return the seconds."""
        ...


def measure(
    model: Timed, *, n_threads: int, n_prompt: int, n_generate: int, repeats: int, rss_before_bytes: int
) -> Measured:
    """Time a prompt and a generation several times.

    The prompt is a fixed sequence of token ids: the time does not depend on which they are. Generation continues it
    token by token, each chosen greedily, so that it runs at the depth of a real conversation. Of a model that makes
    vectors, which generates nothing, the prompt is a text.

    Args:
        model: An open model whose context holds `n_prompt + n_generate` tokens.
        n_threads: Threads it was opened with, to be reported.
        n_prompt: Tokens in the prompt.
        n_generate: Tokens to make; 0 to time the prompt alone.
        repeats: Most runs; the median is reported, after one short run that is not counted. No further run begins after
            `BUDGET_S` seconds.
        rss_before_bytes: Resident memory before the model was loaded.
    """
    prompt = (np.arange(n_prompt, dtype=np.int64) * 97 % min(model.n_vocab, 32000)).astype(np.int32)
    model.time_prompt(prompt[: min(n_prompt, 32)])
    prompt_s: list[float] = []
    step_s: list[float] = []
    fastest_s = math.inf
    energy, reason = energy_counter() if n_generate else (lambda: 0.0, "no token was generated")
    joules = 0.0
    start = time.perf_counter()
    while len(step_s) < repeats and (not step_s or time.perf_counter() - start < BUDGET_S):
        prompt_s.append(model.time_prompt(prompt))
        before = energy()
        steps = [model.time_steps(1) for _ in range(n_generate)]
        joules += energy() - before
        step_s.append(sum(steps))
        fastest_s = min([fastest_s, *steps])
    return Measured(
        pp_tok_s=n_prompt / statistics.median(prompt_s),
        tg_tok_s=n_generate / statistics.median(step_s) if n_generate else 0.0,
        fastest_s=fastest_s,
        n_threads=n_threads, n_prompt=n_prompt, n_generate=n_generate, repeats=len(step_s),
        rss_bytes=peak_rss_bytes(), rss_before_bytes=rss_before_bytes,
        energy_j_per_token=None if reason else joules / (len(step_s) * n_generate),
        energy_reason=reason,
    )  # fmt: skip


def energy_counter(root: Path = RAPL) -> tuple[Callable[[], float], str | None]:
    """Return a function that reads the joules the processor packages used so far, and why it cannot.

    The counters of Intel's and AMD's RAPL wrap around after minutes; a run that meets the wrap would show a negative
    amount, so the range is added back.
    """
    packages = [d for d in sorted(root.glob("*-rapl:*")) if d.name.count(":") == 1] if root.is_dir() else []
    if not packages:
        return lambda: 0.0, "this machine shows no RAPL energy counter (no /sys/class/powercap/*-rapl:*)"
    try:
        ranges = [int((d / "max_energy_range_uj").read_text()) for d in packages]
        last = [int((d / "energy_uj").read_text()) for d in packages]
    except OSError:
        return lambda: 0.0, "the RAPL energy counter may be read by root only"
    wraps = [0] * len(packages)

    def read() -> float:
        for i, package in enumerate(packages):
            now = int((package / "energy_uj").read_text())
            wraps[i] += now < last[i]
            last[i] = now
        return sum(now + n * span for now, n, span in zip(last, wraps, ranges, strict=True)) / 1e6

    return read, None


def peak_rss_bytes() -> int:
    """Return the most resident memory this process has had, bytes."""
    return _status_bytes("VmHWM") or _usage_bytes()


def rss_bytes() -> int:
    """Return this process's resident memory now, bytes; its peak where the system tells no more."""
    return _status_bytes("VmRSS") or _usage_bytes()


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def _usage_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
