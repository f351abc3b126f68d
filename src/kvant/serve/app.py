"""The gateway as a web application: the table of routes, mounted behind the door."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvant.serve import logs
from kvant.serve.access import Authenticator, KeyAuthenticator
from kvant.serve.api.wire import worded
from kvant.serve.door import Door, needs_keys
from kvant.serve.endpoints import JSON, Endpoint, Endpoints
from kvant.serve.gateway import Gateway, gateway
from kvant.serve.keys import Keys
from kvant.serve.library import Library
from kvant.serve.metrics import Metrics
from kvant.serve.routes import ROUTES
from kvant.serve.scheduler import Scheduler
from kvant.serve.settings import Settings
from kvant.serve.share import SharedBounded
from kvant.serve.tracing import NoTracing, Tracing
from kvant.serve.wording import not_found

LEASE_END_S = 2.0
"""Seconds in which workers are given back once the server has ended all answers."""


def make_app(
    settings: Settings,
    library: Library,
    *,
    scheduler: Scheduler | None = None,
    authenticator: Authenticator | None = None,
    tracing: Tracing | None = None,
    metrics: Metrics | None = None,
    routes: Iterable[Endpoint] = ROUTES,
) -> Starlette:
    """Return the gateway; its workers are started on demand and stopped at its shutdown.

    Args:
        settings: What the operator decided.
        library: Which models there are.
        scheduler: What loads them; one that starts processes, by default.
        authenticator: Tells who asks; keys, by default, which are needed wherever others can reach the gateway.
        tracing: Makes spans; none by default.
        metrics: What is measured; of its own by default.
        routes: What can be asked.
    """
    metrics, keys = metrics or Metrics(), Keys(settings.keys_file)
    scheduler = scheduler or Scheduler(settings)
    scheduler.observer = metrics
    metrics.watch(scheduler)
    authenticator = authenticator or KeyAuthenticator(keys, required=needs_keys(settings))
    endpoints = Endpoints(routes)
    here = Gateway(
        settings=settings, endpoints=endpoints, library=library, scheduler=scheduler, metrics=metrics, keys=keys,
        bounded=SharedBounded(),
    )  # fmt: skip

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"ending": asyncio.Event()}  # requests find it in their state; the server sets it when time is up
        await scheduler.aclose(min(settings.drain_s, LEASE_END_S))
        here.bounded.close()

    door = Middleware(
        Door, settings=settings, authenticator=authenticator, endpoints=endpoints, metrics=metrics,
        tracing=tracing or NoTracing(),
    )  # fmt: skip
    app = Starlette(
        routes=[Route(row.path, worded(row.handler, row.dialect), methods=[row.method]) for row in endpoints],
        lifespan=lifespan, middleware=[door], exception_handlers={HTTPException: _http_error, Exception: _defect},
    )  # fmt: skip
    app.state.kvant = here
    app.router.redirect_slashes = not settings.root_path  # Starlette would send clients out of the prefix
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: Any = error.headers
    method, path = request.method, request.url.path
    message = str(error.detail)
    if error.status_code == 404:
        message = not_found(method, path, [row.path for row in gateway(request).endpoints])
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


def _error(request: Request, status: int, message: str, headers: dict[str, str] | None) -> Response:
    body = gateway(request).endpoints.dialect(request.url.path).error(status, message)
    return Response(body, status, headers, JSON)
