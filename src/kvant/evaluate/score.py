"""Measure one variant: quality against the base's logits, then speed, memory and size."""

from pathlib import Path
from typing import Any, ClassVar

import msgspec

from kvant.devices.limits import cores
from kvant.errors import ValueRangeError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.loss import KLD, Lossy, Measure
from kvant.evaluate.metrics import RowScores, Summary, score_rows, summarize
from kvant.progress import SILENT, Progress
from kvant.runtime.artifacts import open_artifact
from kvant.runtime.engine import Engine, Opened
from kvant.runtime.engines.base import Artifact
from kvant.runtime.messages import Measured


class DomainScore(msgspec.Struct, frozen=True, kw_only=True):
    """Quality on the windows of one domain."""

    kld_mean: float
    kld_se: float
    top1: float
    ppl_ratio: float
    n_positions: int


class VariantScore(Lossy, msgspec.Struct, frozen=True, kw_only=True, tag_field="measure", tag="kld"):
    """Everything measured of one variant of a model that writes text.

    Attributes:
        name: File name without its ending.
        path: The file.
        size_bytes: Size of all its files, bytes.
        bpw: Bits per weight: 8 times the bytes of all tensors over their weights.
        kld_mean: Mean KL divergence from the base, nats.
        kld_se: Its standard error, by block bootstrap.
        kld_median: Median; likewise the quantiles after it.
        top1: Share of positions with the base's most likely token.
        rms_dp: Root mean square change of the probability of the text's own token.
        ppl: Perplexity.
        ppl_ratio: Perplexity over the base's.
        kld_sampling_se: What the compact form of the base's logits adds to the error of `kld_mean`.
        n_positions: Positions scored.
        domains: Quality by domain.
        windows: Mean KL divergence of each window of text, in its order: what pairs two variants of one base.
        load_s: Seconds to load and prepare a context.
        n_threads: Threads used.
        pp_tok_s: Prompt tokens per second; None if speed was not measured, like the three after it.
        tg_tok_s: Generated tokens per second.
        rss_bytes: Peak resident memory of the process that ran the model, bytes.
        rss_model_bytes: The part of it that came with the model: without interpreter and engine.
        energy_j_per_token: Joules per generated token of the processor package; None if it cannot be read.
        energy_reason: Why not.
    """

    name: str
    path: str
    size_bytes: int
    bpw: float
    kld_mean: float
    kld_se: float
    kld_median: float
    kld_p95: float
    kld_p99: float
    kld_p999: float
    top1: float
    rms_dp: float
    ppl: float
    ppl_ratio: float
    pp_tok_s: float | None
    tg_tok_s: float | None
    rss_bytes: int | None
    rss_model_bytes: int | None
    load_s: float
    energy_j_per_token: float | None
    energy_reason: str | None
    kld_sampling_se: float
    n_positions: int
    n_threads: int
    domains: dict[str, DomainScore]
    windows: tuple[float, ...] = ()

    measure: ClassVar[Measure] = KLD

    @property
    def parts(self) -> tuple[float, ...]:
        """Mean loss of each part of the text that all variants were measured on."""
        return self.windows

    @property
    def speed_tok_s(self) -> float | None:
        """Tokens per second, as its measure calls them."""
        return self.tg_tok_s

    @property
    def effect(self) -> str:
        """What its loss does to what is written, in words."""
        others = 100 * (1 - self.top1)
        return (
            f"its first choice of a token differs from the original's in {others:.0f} of 100 places; perplexity is "
            f"{self.ppl_ratio:.2f} times as high"
        )


def score(
    variant: Artifact | Path,
    base: BaseLogits,
    *,
    threads: int = 0,
    speed: bool = True,
    progress: Progress = SILENT,
) -> VariantScore:
    """Run a variant in a process of its own and measure it.

    Args:
        variant: Files of any format that an engine runs.
        base: What to compare with.
        threads: Threads of the engine; 0 for one per core.
        speed: Measure tokens per second and memory, too.
        progress: Told of the tokens run.

    Raises:
        EngineError: The engine fails on the file.
        FormatError: It is damaged.
        ValueRangeError: Its tokenizer is not the base's.
    """
    threads = threads or cores()
    artifact = open_artifact(variant)
    measured: Measured | None = None
    context = base.windows.context
    with artifact.engine.process() as process:
        if speed:
            process.open(artifact.entry, n_ctx=context, n_threads=threads)
            runs = artifact.engine.speed
            n_prompt = min(runs.n_prompt, context // 2)
            n_generate = min(runs.n_generate, context - n_prompt)
            measured = process.speed(n_prompt=n_prompt, n_generate=n_generate, repeats=runs.repeats)
        opened = process.open(artifact.entry, n_ctx=context, n_threads=threads, all_logits=True)
        windows = score_windows(process, base, progress=progress)
    return _assemble(artifact, base, opened, windows, measured, threads)


def score_windows(engine: Engine, base: BaseLogits, *, progress: Progress = SILENT) -> list[RowScores]:
    """Run every window through the open model and compare it with the base.

    Raises:
        ValueRangeError: The model's vocabulary has another size than the base's.
    """
    assert engine.opened is not None, "open comes first"
    if engine.opened.n_vocab != base.header.n_vocab:
        raise ValueRangeError(
            f"{engine.path}: its vocabulary has {engine.opened.n_vocab} tokens, the base's {base.header.n_vocab}. "
            "Compare variants with the model they were made from."
        )
    task = f"evaluate {Path(engine.path).stem}"
    progress.start(task, base.windows.tokens.size, "tokens")
    scores = []
    for rows, logits in zip(base.rows, engine.logits(base.windows.tokens, first=base.windows.first), strict=True):
        scores.append(score_rows(logits[:-1], rows))
        progress.advance(task, base.windows.context)
    progress.finish(task)
    return scores


def _assemble(
    artifact: Artifact, base: BaseLogits, opened: Opened, windows: list[RowScores], measured: Measured | None,
    threads: int,
) -> VariantScore:  # fmt: skip
    domains = base.windows.domains
    summary = summarize(windows, domains)
    return VariantScore(
        name=artifact.name, path=str(artifact.entry),
        size_bytes=sum(file.stat().st_size for file in artifact.files),
        bpw=8 * opened.tensor_bytes / opened.n_params,
        **_quality(summary),
        **speed_fields(measured),
        load_s=opened.load_s,
        n_threads=threads,
        domains={name: _domain(windows, domains, name) for name in sorted(set(domains))},
        windows=tuple(float(rows.kld.mean()) for rows in windows),
    )  # fmt: skip


def speed_fields(measured: Measured | None) -> dict[str, Any]:
    """Return what a score says of speed and memory; None of everything that was not measured."""
    if measured is None:
        names = ("pp_tok_s", "tg_tok_s", "rss_bytes", "rss_model_bytes", "energy_j_per_token")
        return {**dict.fromkeys(names), "energy_reason": "speed was not measured"}
    return {
        "pp_tok_s": measured.pp_tok_s, "tg_tok_s": measured.tg_tok_s, "rss_bytes": measured.rss_bytes,
        "rss_model_bytes": measured.rss_bytes - measured.rss_before_bytes,
        "energy_j_per_token": measured.energy_j_per_token, "energy_reason": measured.energy_reason,
    }  # fmt: skip


def _quality(summary: Summary) -> dict[str, Any]:
    names = set(Summary.__slots__) & set(VariantScore.__struct_fields__)
    return {name: getattr(summary, name) for name in names}


def _domain(windows: list[RowScores], domains: tuple[str, ...], name: str) -> DomainScore:
    summary = summarize([w for w, domain in zip(windows, domains, strict=True) if domain == name])
    return DomainScore(**{field: getattr(summary, field) for field in DomainScore.__struct_fields__})
