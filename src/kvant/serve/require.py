"""What a model cannot do is refused in the words that clients look for."""

from kvant.errors import ApiError
from kvant.serve.library import ModelFile


def require(file: ModelFile, *, tools: bool = False) -> None:
    """Refuse what a model cannot do.

    Raises:
        ApiError: In the words of Ollama.
    """
    capabilities = file.capabilities
    if "completion" not in capabilities:
        raise ApiError(f'"{file.name}" does not support generate: it makes embeddings. Use another model.')
    if tools and "tools" not in capabilities:
        raise ApiError(
            f"{file.name} does not support tools: its chat template has no place for them. Use another model, or leave "
            "tools out.",
            code="tools_not_supported",
            param="tools",
        )
