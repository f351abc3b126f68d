"""The APIs a gateway speaks: one module each, with its own `routes()`."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def routes() -> list[Route]:
    """Return the routes of all APIs."""
    return [Route("/v1/models", _models)]


async def _models(request: Request) -> Response:
    files = request.app.state.kvant.library.list()
    data = [
        {"id": file.name, "object": "model", "created": int(file.modified_at.timestamp()), "owned_by": "kvant"}
        for file in files
    ]
    return JSONResponse({"object": "list", "data": data})
