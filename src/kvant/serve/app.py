"""The gateway as a web application: what all of its routes share, and the routes that belong to no API."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvant.serve import api
from kvant.serve.library import Library
from kvant.serve.scheduler import Scheduler
from kvant.serve.settings import Settings


@dataclass(slots=True, kw_only=True)
class Gateway:
    """What every handler finds at `request.app.state.kvant`.

    Attributes:
        settings: What the operator decided.
        library: Which models there are.
        scheduler: Which are loaded.
    """

    settings: Settings
    library: Library
    scheduler: Scheduler


def make_app(settings: Settings, library: Library) -> Starlette:
    """Return the gateway; its workers are started on demand and stopped at its shutdown."""
    gateway = Gateway(settings=settings, library=library, scheduler=Scheduler(settings))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await gateway.scheduler.aclose(settings.drain_s)

    app = Starlette(routes=[Route("/health", _health), *api.routes()], lifespan=lifespan)
    app.state.kvant = gateway
    return app


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})
