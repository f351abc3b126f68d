"""The routes of the gateway itself over a scheduler with fake engines."""

import asyncio
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from kvant.serve.api.wire import caller
from kvant.serve.app import make_app
from kvant.serve.endpoints import Endpoint
from kvant.serve.gateway import gateway
from kvant.serve.library import DirectoryLibrary
from kvant.serve.routes import ROUTES
from kvant.serve.settings import Settings
from kvant.serve.status import GatewayStatus, resident_bytes
from kvant.serve.wording import OPENAI
from serving import FakeEngines, model_file, scheduler


async def ask(request: Request) -> Response:
    """What an API does, in short."""
    here = gateway(request)
    with here.metrics.request("a") as timer:
        async with here.scheduler.lease(model_file("a"), caller=caller(request)) as lease:
            status, body = await lease.worker.post("/completion", {"n": 1})
            timer.finish("stop", prompt_tokens=3, generated_tokens=5)
    return JSONResponse(body, status_code=status)


def test_a_request_is_seen_in_status_and_metrics_and_gone_after_shutdown(
    tmp_path: Path,
) -> None:
    async def make() -> FakeEngines:
        return FakeEngines()

    engines = asyncio.run(make())
    plan = scheduler(engines, drain_s=0.0)
    asked = Endpoint("GET", "/v1/ask", ask, scope="inference", dialect=OPENAI, heading="")
    app = make_app(plan.settings, DirectoryLibrary(tmp_path), scheduler=plan, routes=[*ROUTES, asked])
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/ask").json()["n"] == 1
        status = client.get("/kvant/status").json()
        (model,) = status["models"]
        assert (model["name"], model["context"], model["running"], model["waiting"]) == ("a", 8192, 0, 0)
        assert set(status) == set(GatewayStatus.__struct_fields__)
        answer = client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.labels.get("model_name") == "a"
        }
        assert values["vllm:generation_tokens_total"] == 5
        assert values["kvant_request_queue_time_seconds_count"] == 1
        assert values["kvant_model_load_seconds_count"] == 1
        assert values["kvant_model_memory_bytes"] > 0
        assert engines.started[0].alive
    assert not engines.started[0].alive
    assert plan.closing


def test_a_gateway_that_shuts_down_is_not_ready(tmp_path: Path) -> None:
    app = make_app(Settings(max_ram_bytes=1), DirectoryLibrary(tmp_path))
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/ready").status_code == 200
    app.state.kvant.scheduler._closing = True
    answer = client.get("/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert client.get("/health").status_code == 200


def test_resident_memory_of_a_process_that_is_not_there() -> None:
    assert resident_bytes("nobody") is None
