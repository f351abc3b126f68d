"""What a gateway measures, for Prometheus: names of its own, and vLLM's for dashboards and scalers that know those.

Labels hold model names and fixed words only, never anything a client made up.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED = frozenset({"stop", "length", "tool_calls", "abort", "error"})
LATENCY_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5, 5)
SIZE_BYTES = tuple(float(1 << n) for n in range(26, 40))

# Ours -> vLLM's, the same numbers and labels. Source: vLLM 0.32 `vllm/v1/metrics/loggers.py`, seen at its /metrics.
ALIASES = {
    f"kvant_{name}": f"vllm:{name}"
    for name in (
        "num_requests_running", "num_requests_waiting", "prompt_tokens", "generation_tokens", "request_success",
        "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens", "prompt_tokens_cached",
        "spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens",
    )
}  # fmt: skip


class Loads(Protocol):
    """What is asked of the scheduler at a scrape."""

    limit_bytes: int

    def waiting(self) -> dict[str, int]: ...  # noqa: D102
    def running(self) -> dict[str, int]: ...  # noqa: D102
    def sizes(self) -> dict[str, int]: ...  # noqa: D102


class RequestTimer:
    """Times one request; `Metrics.request` makes it."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self._metrics, self._model = metrics, model
        self._begun = self._last = time.perf_counter()
        self._tokens = 0
        self._has_token = False
        self.finished: str | None = None

    def first_token(self) -> None:
        """Note that the first token came; `token` does it too."""
        if not self._has_token:
            self._has_token = True
            self._last = time.perf_counter()
            self._metrics.first_token_s.labels(self._model).observe(self._last - self._begun)

    def token(self, n: int = 1) -> None:
        """Note that `n` tokens came just now."""
        if n < 1:
            return
        if not self._has_token:
            self.first_token()
            n_gaps = n - 1
        else:
            n_gaps = n
        now = time.perf_counter()
        for _ in range(n_gaps):
            self._metrics.token_s.labels(self._model).observe((now - self._last) / n_gaps)
        self._last = now
        self._tokens += n
        self._metrics.generated.labels(self._model).inc(n)

    def finish(self, reason: str, *, prompt_tokens: int = 0, generated_tokens: int | None = None) -> None:
        """Note that the answer is whole.

        Args:
            reason: `stop`, `length`, `tool_calls`, `abort` or `error`; anything else counts as `stop`.
            prompt_tokens: Tokens of the prompt, as the engine counted them.
            generated_tokens: Tokens of the answer; None for those that `token` was told.
        """
        if self.finished is not None:
            return
        self.finished = reason if reason in FINISHED else "stop"
        total = self._tokens if generated_tokens is None else generated_tokens
        metrics, model = self._metrics, self._model
        metrics.generated.labels(model).inc(max(0, total - self._tokens))
        metrics.prompts.labels(model).inc(prompt_tokens)
        metrics.prompt_sizes.labels(model).observe(prompt_tokens)
        metrics.answer_sizes.labels(model).observe(total)
        metrics.end_to_end_s.labels(model).observe(time.perf_counter() - self._begun)
        metrics.finished.labels(model, self.finished).inc()


class Metrics:
    """All measurements of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"kvant_{name}", text, ["model_name"], registry=registry, buckets=buckets)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kvant_{name}", text, labels, registry=registry)

        counts = tuple(float(1 << n) for n in range(18))
        self.first_token_s = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", LATENCY_S
        )
        self.token_s = histogram("inter_token_latency_seconds", "Between two tokens of an answer.", TOKEN_S)
        self.end_to_end_s = histogram(
            "e2e_request_latency_seconds", "From a request's arrival to the end of its answer.", LATENCY_S
        )
        self.queue_s = histogram("request_queue_time_seconds", "Wait for a slot, loading included.", LATENCY_S)
        self.load_s = histogram("model_load_seconds", "Time to load a model.", LATENCY_S)
        self.load_bytes = histogram("model_load_bytes", "Predicted memory of loaded models.", SIZE_BYTES)
        self.prompt_sizes = histogram("request_prompt_tokens", "Tokens of a prompt.", counts)
        self.answer_sizes = histogram("request_generation_tokens", "Tokens of an answer.", counts)
        self.prompts = counter("prompt_tokens", "Prompt tokens.", "model_name")
        self.generated = counter("generation_tokens", "Generated tokens.", "model_name")
        self.finished = counter("request_success", "Answers that ended, by reason.", "model_name", "finished_reason")
        self.failed = counter("request_failed", "Requests without a whole answer, by error.", "model_name", "error")
        self.events = counter("model_events", "Loads, crashes, evictions and so on.", "model_name", "event")
        self.responses = counter("http_responses", "HTTP responses.", "status")
        self.refusals = counter("door_refusals", "Requests refused at the door.", "reason")
        self.open_requests = Gauge("kvant_http_requests_open", "HTTP requests being answered.", registry=registry)
        self.connections = Gauge("kvant_http_connections_open", "Open connections.", registry=registry)
        ProcessCollector(registry=registry)

    def watch(self, loads: Loads) -> None:
        """Ask the scheduler for its queues and models at every scrape."""
        self.registry.register(_Loads(loads))

    @contextmanager
    def request(self, model: str) -> Iterator[RequestTimer]:
        """Time one request for a model that exists; what leaves the block as an exception is counted by kind."""
        timer = RequestTimer(self, model)
        try:
            yield timer
        except BaseException as error:
            kind = type(error).__name__
            is_abort = kind in ("CancelledError", "GeneratorExit", "ClientDisconnect")
            if timer.finished is None:
                if is_abort:
                    timer.finish("abort")
                else:
                    self.failed.labels(model, kind).inc()
            raise
        else:
            timer.finish("stop")

    def queued(self, model: str, seconds: float) -> None:
        """Note how long a request waited for its slot."""
        self.queue_s.labels(model).observe(seconds)

    def loaded(self, model: str, seconds: float, size_bytes: int) -> None:
        """Note that a model was loaded."""
        self.load_s.labels(model).observe(seconds)
        self.load_bytes.labels(model).observe(size_bytes)
        self.event(model, "loaded")

    def event(self, model: str, kind: str) -> None:
        """Count something that happened to a model."""
        self.events.labels(model, kind).inc()

    def text(self, extra: Iterable[Metric] = ()) -> bytes:
        """Return everything in Prometheus' text format, aliases included."""
        families = [*self.registry.collect(), *extra]
        return generate_latest(_Fixed([*families, *map(_renamed, filter(_has_alias, families))]))


class _Fixed(CollectorRegistry):
    """A registry of families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


class _Loads(Collector):
    """Gauges that are read off the scheduler."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield _gauge("kvant_num_requests_running", "Requests being answered.", self._loads.running())
        yield _gauge("kvant_num_requests_waiting", "Requests that wait for a slot.", self._loads.waiting())
        yield _gauge("kvant_model_memory_bytes", "Predicted memory of loaded models.", self._loads.sizes())
        yield GaugeMetricFamily(
            "kvant_memory_limit_bytes", "Memory that models may take.", value=self._loads.limit_bytes
        )


def _gauge(name: str, text: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["model_name"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family


def _has_alias(family: Metric) -> bool:
    return family.name in ALIASES


def _renamed(family: Metric) -> Metric:
    """Return a family under vLLM's name."""
    alias = ALIASES[family.name]
    copy = Metric(alias, family.documentation, family.type, family.unit)
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            name = alias + sample.name[len(family.name) :]
            copy.samples.append(Sample(name, sample.labels, sample.value, sample.timestamp, sample.exemplar))
    return copy
