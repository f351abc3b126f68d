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
        does = "scores pairs of texts (/v1/rerank)" if "rerank" in capabilities else "makes embeddings"
        raise ApiError(f'"{file.name}" does not support generate: it {does}. Use another model.')
    if tools and "tools" not in capabilities:
        raise ApiError(
            f"{file.name} does not support tools: its chat template has no place for them. Use another model, or leave "
            "tools out.",
            code="tools_not_supported",
            param="tools",
        )


def require_vectors(file: ModelFile) -> None:
    """Refuse vectors of a model whose engine gives scores.

    Raises:
        ApiError: It is a reranker.
    """
    if "rerank" in file.capabilities:
        raise ApiError(
            f'"{file.name}" does not support embeddings: it scores pairs of texts. Ask /v1/rerank, or another model.'
        )


def require_rerank(file: ModelFile) -> None:
    """Refuse scores of a model that has no head for them.

    Raises:
        ApiError: It is no reranker.
    """
    if "rerank" not in file.capabilities:
        raise ApiError(
            f'"{file.name}" does not support rerank: it is no reranker. Use one, such as Qwen3-Reranker or '
            "BGE reranker, or compare vectors from /v1/embeddings."
        )
