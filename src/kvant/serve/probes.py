"""What those who run a gateway ask it: whether it lives and is ready, what it measures, what it is doing."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kvant import __version__
from kvant.serve.engine_metrics import engine_metrics
from kvant.serve.gateway import gateway
from kvant.serve.metrics import CONTENT_TYPE
from kvant.serve.status import gateway_status


class Health(msgspec.Struct):
    """The answer of /health."""

    status: str
    version: str


class Ready(msgspec.Struct):
    """The answer of /ready."""

    status: str


async def health(_: Request) -> Response:
    """GET /health: it lives."""
    return JSONResponse({"status": "ok", "version": __version__})


async def ready(request: Request) -> Response:
    """GET /ready: it takes requests."""
    if gateway(request).scheduler.closing:
        return JSONResponse({"status": "shutting down"}, status_code=503, headers={"Retry-After": "5"})
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    """GET /metrics: measurements, its own and its engines', for Prometheus."""
    here = gateway(request)
    return Response(here.metrics.text(await engine_metrics(here.scheduler.workers())), media_type=CONTENT_TYPE)


async def status(request: Request) -> Response:
    """GET /kvant/status: what is loaded, running and waiting."""
    return Response(msgspec.json.encode(gateway_status(gateway(request).scheduler)), media_type="application/json")
