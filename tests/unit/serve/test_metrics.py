import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvant.serve.engine_metrics import COUNTERS, engine_metrics
from kvant.serve.metrics import ALIASES, Metrics
from serving import FakeWorker


async def engine_says(path: str) -> tuple[int, bytes]:
    assert path == "/metrics"
    lines = [f"# HELP {name} x\n{name} {value}" for value, name in enumerate(COUNTERS)]
    return 200, "\n".join([*lines, "llamacpp:unknown 3", "broken", "llamacpp:n_decode_total abc", ""]).encode()


class Loads:
    limit_bytes = 1000

    def waiting(self) -> dict[str, int]:
        return {"m": 2}

    def running(self) -> dict[str, int]:
        return {"m": 1}

    def sizes(self) -> dict[str, int]:
        return {"m": 500}


def samples(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    """What a scraper reads: (name, model, other label) to value."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            key = (sample.name, labels.pop("model_name", ""), ",".join(labels.values()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def test_one_answer_under_both_names() -> None:
    metrics = Metrics()
    metrics.watch(Loads())
    metrics.queued("m", 0.1)
    metrics.loaded("m", 2.0, 500)
    with metrics.request("m") as timer:
        timer.first_token()
        for _ in range(3):
            timer.token()
        timer.finish("length", prompt_tokens=7)
        timer.finish("stop", prompt_tokens=7)  # a second end does not count

    seen = samples(metrics)

    for prefix in ("kvant_", "vllm:"):
        assert seen[f"{prefix}prompt_tokens_total", "m", ""] == 7
        assert seen[f"{prefix}generation_tokens_total", "m", ""] == 3
        assert seen[f"{prefix}request_success_total", "m", "length"] == 1
        assert seen[f"{prefix}time_to_first_token_seconds_count", "m", ""] == 1
        assert seen[f"{prefix}inter_token_latency_seconds_count", "m", ""] == 3
        assert seen[f"{prefix}e2e_request_latency_seconds_count", "m", ""] == 1
        assert seen[f"{prefix}request_queue_time_seconds_sum", "m", ""] == pytest.approx(0.1)
        assert seen[f"{prefix}num_requests_waiting", "m", ""] == 2
        assert seen[f"{prefix}num_requests_running", "m", ""] == 1
    assert seen["kvant_model_load_seconds_sum", "m", ""] == 2
    assert seen["kvant_memory_limit_bytes", "", ""] == 1000
    assert ("vllm:request_success_total", "m", "stop") not in seen


def test_every_alias_stands_for_something() -> None:
    metrics = Metrics()
    metrics.watch(Loads())
    worker = FakeWorker("m", 1)
    worker.get = engine_says  # type: ignore[method-assign]
    text = metrics.text(asyncio.run(engine_metrics([worker]))).decode()
    for name, alias in ALIASES.items():
        assert f"# TYPE {name}" in text
        assert f"# TYPE {alias}" in text


def test_answers_that_were_not_streamed_count_their_tokens_too() -> None:
    metrics = Metrics()
    with metrics.request("m") as timer:
        timer.finish("stop", prompt_tokens=4, generated_tokens=9)
    seen = samples(metrics)
    assert seen["kvant_generation_tokens_total", "m", ""] == 9
    assert ("kvant_inter_token_latency_seconds_count", "m", "") not in seen


@pytest.mark.parametrize(
    ("error", "name", "label"),
    [
        (ValueError, "kvant_request_failed_total", "ValueError"),
        (asyncio.CancelledError, "kvant_request_success_total", "abort"),
        (GeneratorExit, "kvant_request_success_total", "abort"),
    ],
)
def test_requests_that_do_not_end_well(error: type[BaseException], name: str, label: str) -> None:
    metrics = Metrics()
    with pytest.raises(error), metrics.request("m"):
        raise error
    assert samples(metrics)[name, "m", label] == 1


def test_reasons_are_a_fixed_set_and_names_cannot_forge_lines() -> None:
    metrics = Metrics()
    with metrics.request('m"} 1\nforged 1') as timer:
        timer.finish("whatever a model says")
    seen = samples(metrics)
    assert seen["kvant_request_success_total", 'm"} 1\nforged 1', "stop"] == 1
    assert not any(name == "forged" for name, _, _ in seen)


def test_what_engines_count_is_added_where_they_answer() -> None:
    async def test() -> None:
        fine, crashed = FakeWorker("m", 1), FakeWorker("n", 1)
        fine.get = engine_says  # type: ignore[method-assign]
        crashed.kill()
        families = {family.name: family for family in await engine_metrics([fine, crashed])}
        (sample,) = families["kvant_spec_decode_num_accepted_tokens"].samples
        assert sample.labels == {"model_name": "m"}
        assert sample.value == list(COUNTERS).index("llamacpp:spec_decode_num_accepted_tokens_total")
        assert await engine_metrics([]) == []

    asyncio.run(test())
