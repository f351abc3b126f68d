"""OpenAI's API: /v1/models."""

import asyncio
from datetime import UTC

from starlette.requests import Request
from starlette.responses import Response

from kvant.errors import ApiError, KvantError
from kvant.serve.api.openai.types import ListedModel, Models
from kvant.serve.api.wire import as_json, model_file, served_size
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile


async def models(request: Request) -> Response:
    """GET /v1/models."""
    files = await asyncio.to_thread(gateway(request).library.list)
    data = [await _listed(request, file) for file in files]
    return as_json(Models(data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None))


async def model(request: Request) -> Response:
    """GET /v1/models/{id}."""
    name = request.path_params["name"]
    if not name:
        raise ApiError("model: is missing in the path.", param="model")
    return as_json(await _listed(request, await model_file(request, name)))


async def _listed(request: Request, file: ModelFile) -> ListedModel:
    try:
        context = (await served_size(request, file)).extent.context
    except (KvantError, OSError):  # its file is not put together yet
        context = file.facts.context_length
    return ListedModel(
        id=file.name, created=int(file.modified_at.timestamp()), max_model_len=context, context_length=context,
        display_name=file.name, created_at=f"{file.modified_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        capabilities=file.capabilities,
    )  # fmt: skip
