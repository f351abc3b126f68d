"""The gateway as a web application: what all of its routes share, and the routes that belong to no API."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvant import __version__
from kvant.errors import KvantError
from kvant.runtime.plaintext import Controls
from kvant.serve import api, logs, page
from kvant.serve.access import Authenticator, KeyAuthenticator
from kvant.serve.api.failure import describe
from kvant.serve.door import Door, needs_keys
from kvant.serve.engine_metrics import engine_metrics
from kvant.serve.keys import Keys
from kvant.serve.library import Library
from kvant.serve.metrics import CONTENT_TYPE, Metrics
from kvant.serve.scheduler import Scheduler
from kvant.serve.settings import Settings
from kvant.serve.share import SharedBounded
from kvant.serve.status import gateway_status
from kvant.serve.tracing import NoTracing, Tracing
from kvant.serve.wording import api_of, error_body, not_found

LEASE_END_S = 2.0
"""Seconds in which workers are given back once the server has ended all answers."""


@dataclass(slots=True, kw_only=True)
class Gateway:
    """What every handler finds at `request.app.state.kvant`.

    Attributes:
        settings: What the operator decided.
        library: Which models there are.
        scheduler: Which are loaded.
        metrics: What is measured.
        keys: Who may come in.
        bounded: Does what clients' bytes could prolong.
        controls: Control tokens of models, by digest.
    """

    settings: Settings
    library: Library
    scheduler: Scheduler
    metrics: Metrics
    keys: Keys
    bounded: SharedBounded
    controls: dict[str, asyncio.Future[Controls]] = field(default_factory=dict)


def make_app(
    settings: Settings,
    library: Library,
    *,
    scheduler: Scheduler | None = None,
    authenticator: Authenticator | None = None,
    tracing: Tracing | None = None,
    metrics: Metrics | None = None,
) -> Starlette:
    """Return the gateway; its workers are started on demand and stopped at its shutdown.

    Args:
        settings: What the operator decided.
        library: Which models there are.
        scheduler: What loads them; one that starts processes, by default.
        authenticator: Tells who asks; keys, by default, which are needed wherever others can reach the gateway.
        tracing: Makes spans; none by default.
        metrics: What is measured; of its own by default.
    """
    metrics, keys = metrics or Metrics(), Keys(settings.keys_file)
    scheduler = scheduler or Scheduler(settings)
    scheduler.observer = metrics
    metrics.watch(scheduler)
    authenticator = authenticator or KeyAuthenticator(keys, required=needs_keys(settings))
    gateway = Gateway(
        settings=settings, library=library, scheduler=scheduler, metrics=metrics, keys=keys, bounded=SharedBounded()
    )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"ending": asyncio.Event()}  # requests find it in their state; the server sets it when time is up
        await scheduler.aclose(min(settings.drain_s, LEASE_END_S))
        gateway.bounded.close()

    own = [
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/metrics", _metrics),
        Route("/kvant/status", _status),
    ]
    app = Starlette(
        routes=[*own, *page.routes(), *api.routes()],
        lifespan=lifespan,
        middleware=[
            Middleware(
                Door, settings=settings, authenticator=authenticator, metrics=metrics, tracing=tracing or NoTracing()
            )
        ],
        exception_handlers={KvantError: _kvant_error, HTTPException: _http_error, Exception: _defect},
    )
    app.state.kvant = gateway
    app.router.redirect_slashes = not settings.root_path  # Starlette would send clients out of the prefix
    return app


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok", "version": __version__})


async def _ready(request: Request) -> Response:
    gateway: Gateway = request.app.state.kvant
    if gateway.scheduler.closing:
        return JSONResponse({"status": "shutting down"}, status_code=503, headers={"Retry-After": "5"})
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.kvant
    engines = await engine_metrics(gateway.scheduler.workers())
    return Response(gateway.metrics.text(engines), media_type=CONTENT_TYPE)


async def _status(request: Request) -> Response:
    gateway: Gateway = request.app.state.kvant
    return Response(msgspec.json.encode(gateway_status(gateway.scheduler)), media_type="application/json")


def _error(
    request: Request, status: int, message: str, headers: dict[str, str] | None = None, *, code: str | None = None
) -> Response:
    body = error_body(api_of(request.url.path), status, message, code=code)
    return JSONResponse(body, status_code=status, headers=headers)


async def _kvant_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KvantError)
    failure = describe(error)
    headers = {} if failure.retry_after_s is None else {"Retry-After": str(failure.retry_after_s)}
    return _error(request, failure.status, failure.message, headers, code=failure.code)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: Any = error.headers
    method, path = request.method, request.url.path
    message = str(error.detail)
    if error.status_code == 404:
        message = not_found(method, path, [route.path for route in request.app.routes if isinstance(route, Route)])
    elif error.status_code == 405:
        message = f"{method} {path[:200]}: is not allowed. Use {(error.headers or {}).get('Allow', 'another method')}."
    return _error(request, error.status_code, message, headers)


async def _defect(request: Request, error: Exception) -> Response:
    logs.log.error("defect", exc_info=error, extra={"fields": {"id": request.state.request_id}})
    return _error(
        request,
        500,
        "The gateway failed over this request; its log says why.",
        {"X-Request-Id": request.state.request_id},
    )
