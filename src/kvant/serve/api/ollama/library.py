"""Models of the library by their names, in Ollama's words where there is none."""

from starlette.requests import Request

from kvant.errors import ApiError, ModelNotFoundError
from kvant.serve.api.wire import check, model_file
from kvant.serve.library import ModelFile


async def find(request: Request, name: str) -> ModelFile:
    """Return a model of the library.

    Raises:
        ApiError: It is not there, in Ollama's words.
    """
    check(bool(name), "model is required", "model")
    try:
        return await model_file(request, name)
    except ModelNotFoundError:
        raise ApiError(f"model '{name[:500]}' not found", status=404, code="model_not_found", param="model") from None
