"""The APIs a gateway speaks: one module each, with its own `routes()`."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kvant.serve.api import cards, ollama, ollama_models

MODULES = (cards, ollama, ollama_models)


def routes() -> list[Route]:
    """Return the routes of all APIs."""
    return [Route("/v1/models", _models), *(route for module in MODULES for route in module.routes())]


async def _models(request: Request) -> Response:
    files = request.app.state.kvant.library.list()
    data = [
        {"id": file.name, "object": "model", "created": int(file.modified_at.timestamp()), "owned_by": "kvant"}
        for file in files
    ]
    return JSONResponse({"object": "list", "data": data})
