"""Which threads and session options a model runs fastest with on this machine, found by running it.

Every setting gets a process of its own, and settings take turns in rounds, so that what else the machine does falls on
all of them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvant.devices.limits import cores
from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.progress import SILENT, Progress
from kvant.runtime.artifacts import open_artifact
from kvant.runtime.engines.base import Artifact, EngineSpec
from kvant.runtime.messages import Measured

TIE = 0.97
"""Speeds this close to the fastest are as good; the setting with fewer threads, and without spinning, is taken then."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is run: threads (0: the engine's own choice), and whether ONNX Runtime's threads wait by spinning."""

    threads: int
    spinning: bool | None = None


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """What one setting gave: medians over rounds.

    Attributes:
        threads: Threads; 0 for the engine's own choice.
        spinning: Whether ONNX Runtime's threads wait by spinning; None of other engines.
        pp_tok_s: Prompt tokens per second.
        tg_tok_s: Generated tokens per second.
        rss_bytes: Peak resident memory.
        is_best: Whether it is the one to take.
    """

    threads: int
    spinning: bool | None
    pp_tok_s: float
    tg_tok_s: float
    rss_bytes: int
    is_best: bool = False


class Benched(msgspec.Struct, frozen=True, kw_only=True):
    """A model's timings; `format` is its engine's name, and `saved` says that the best went into its directory."""

    path: str
    format: str
    timings: tuple[Timing, ...]
    saved: bool = False


def bench(
    models: Sequence[Artifact | Path], *, threads: Sequence[int] = (), n_prompt: int = 256, n_generate: int = 32,
    rounds: int = 3, save: bool = False, progress: Progress = SILENT,
) -> list[Benched]:  # fmt: skip
    """Time models of any format under several settings.

    Args:
        models: GGUF files, MLX directories, directories of onnxruntime-genai, and what other engines run.
        threads: Thread counts to try; by default powers of two up to the cores, and the cores.
        n_prompt: Tokens of the prompt.
        n_generate: Tokens to make after it.
        rounds: Times that every setting is run.
        save: Write the best of ONNX directories into their genai_config.json, where onnxruntime-genai reads it.
        progress: Told of runs.

    Raises:
        ValueRangeError: A count is below 1.
        UnsupportedFormatError: `save`, and a model is no ONNX directory: other formats keep no such settings; or
            `threads`, and all are MLX directories, whose engine chooses them itself.
        EngineError: An engine fails on a model.
    """
    if min((*threads, n_prompt, n_generate, rounds)) < 1:
        raise ValueRangeError("threads, prompt, tokens and rounds: one is below 1. Give at least 1.")
    artifacts = [open_artifact(model) for model in models]
    if save and not all(artifact.engine.keep_setting for artifact in artifacts):
        raise UnsupportedFormatError(
            "--save: only ONNX directories keep session options (genai_config.json). Pass --threads to kvant run."
        )
    if threads and not any(artifact.engine.takes_threads for artifact in artifacts):
        raise UnsupportedFormatError(
            f"--threads: {artifacts[0].engine.format} chooses its threads itself, so it would not be used. "
            "Leave it out."
        )
    return [
        _benched(artifact, threads or default_threads(), n_prompt, n_generate, rounds, save, progress)
        for artifact in artifacts
    ]


def default_threads() -> tuple[int, ...]:
    """Powers of two up to the cores, and the cores."""
    most = cores()
    return tuple(sorted({*(1 << i for i in range(most.bit_length()) if 1 << i <= most), most}))


def settings_of(engine: EngineSpec, threads: Sequence[int]) -> list[Setting]:
    """Return the settings that an engine can be run with."""
    waits = (True, False) if engine.spins else (None,)
    return [Setting(n, spinning) for n in (threads if engine.takes_threads else (0,)) for spinning in waits]


def _benched(
    artifact: Artifact, threads: Sequence[int], n_prompt: int, n_generate: int, rounds: int, save: bool,
    progress: Progress,
) -> Benched:  # fmt: skip
    settings = settings_of(artifact.engine, threads)
    found: dict[Setting, list[Measured]] = {setting: [] for setting in settings}
    task = f"bench {artifact.path.name}"
    progress.start(task, rounds * len(settings), "runs")
    for _ in range(rounds):
        for setting in settings:
            found[setting].append(_run(artifact, setting, n_prompt, n_generate))
            progress.advance(task, 1)
    progress.finish(task)
    timings = [
        Timing(
            threads=setting.threads, spinning=setting.spinning,
            pp_tok_s=statistics.median(m.pp_tok_s for m in runs), tg_tok_s=statistics.median(m.tg_tok_s for m in runs),
            rss_bytes=max(m.rss_bytes for m in runs),
        )
        for setting, runs in found.items()
    ]  # fmt: skip
    fastest = max(t.tg_tok_s for t in timings)
    best = min(
        (t for t in timings if t.tg_tok_s >= TIE * fastest), key=lambda t: (t.threads, bool(t.spinning), -t.tg_tok_s)
    )
    if save and artifact.engine.keep_setting:
        artifact.engine.keep_setting(artifact.path, best.threads, bool(best.spinning))
    marked = tuple(msgspec.structs.replace(t, is_best=t is best) for t in timings)
    return Benched(path=str(artifact.path), format=artifact.engine.name, timings=marked, saved=save)


def _run(artifact: Artifact, setting: Setting, n_prompt: int, n_generate: int) -> Measured:
    with artifact.engine.process() as process:
        process.open(artifact.entry, n_ctx=n_prompt + n_generate, n_threads=setting.threads, spinning=setting.spinning)
        return process.speed(n_prompt=n_prompt, n_generate=n_generate, repeats=1)
