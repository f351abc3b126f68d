"""The content of a message: a text, or parts of which only those that are text can be taken."""

from kvant.errors import ApiError
from kvant.serve.api.openai.types import (
    Part,
)
from kvant.serve.library import ModelFile


def plain_text(content: str | list[Part] | None, file: ModelFile) -> str:
    """Return a message's text.

    Raises:
        ApiError: It has a part that is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.type in ("thinking", "reasoning"):  # a model's old thinking is not shown to it again
            continue
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            raise ApiError(
                f"messages: {file.name} does not support parts of type {part.type[:100]!r}: it is served without an "
                "encoder for them. Send text alone.",
                param="messages",
            )
        texts.append(part.text or part.refusal or "")
    return "\n".join(texts) if len(texts) > 1 else "".join(texts)
