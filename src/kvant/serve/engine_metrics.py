"""What the engines themselves count, read from their servers at a scrape: speculation, cached prompts, time.

A counter starts again at 0 with its worker, as counters of restarted processes do.
"""

import asyncio
from collections.abc import Sequence

from prometheus_client.core import CounterMetricFamily, Metric

from kvant.errors import WorkerError
from kvant.runtime.server.workers import Worker

TIMEOUT_S = 2.0
# llama.cpp's name -> ours. Source: its server's /metrics, xllamacpp 2026.10.11549.
COUNTERS = {
    "llamacpp:prompt_tokens_cached_total": "kvant_prompt_tokens_cached",
    "llamacpp:spec_decode_num_drafts_total": "kvant_spec_decode_num_drafts",
    "llamacpp:spec_decode_num_draft_tokens_total": "kvant_spec_decode_num_draft_tokens",
    "llamacpp:spec_decode_num_accepted_tokens_total": "kvant_spec_decode_num_accepted_tokens",
    "llamacpp:prompt_seconds_total": "kvant_engine_prompt_seconds",
    "llamacpp:tokens_predicted_seconds_total": "kvant_engine_generation_seconds",
    "llamacpp:n_decode_total": "kvant_engine_batches",
}


async def engine_metrics(workers: Sequence[Worker]) -> list[Metric]:
    """Return what workers count, by model; those that do not answer in time are left out."""
    texts = await asyncio.gather(*(_text(worker) for worker in workers))
    families = {
        name: CounterMetricFamily(name, "Counted by the engine.", labels=["model_name"]) for name in COUNTERS.values()
    }
    for worker, text in zip(workers, texts, strict=True):
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            number = _number(value)
            if name in COUNTERS and number is not None:
                families[COUNTERS[name]].add_metric([worker.name], number)
    return [family for family in families.values() if family.samples]


async def _text(worker: Worker) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            status, body = await worker.get("/metrics")
    except (TimeoutError, WorkerError):
        return ""
    return body.decode("utf-8", "replace") if status == 200 else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
