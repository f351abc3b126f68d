"""The content of a message: a text, or parts that are texts, pictures and sounds."""

from typing import Any

from kvant.errors import ApiError
from kvant.generate.media import Media, content_of, picture, sound
from kvant.serve.api.openai.types import Part
from kvant.serve.library import ModelFile

Content = str | list[dict[str, Any]]
THOUGHTS = ("thinking", "reasoning")
"""A model's old thinking is not shown to it again."""

TEXTS = ("text", "input_text", "output_text", "refusal")


def content(given: str | list[Part] | None, file: ModelFile, where: str = "messages") -> Content:
    """Return a message's content.

    Args:
        given: As it was sent.
        file: The model.
        where: The field, for errors.

    Raises:
        ApiError: It has a part of another kind, or a picture or sound that cannot be taken.
    """
    if given is None or isinstance(given, str):
        return given or ""
    return content_of([_part(part, file, f"{where}[{i}]") for i, part in enumerate(given) if part.type not in THOUGHTS])


def _part(part: Part, file: ModelFile, where: str) -> str | Media:
    if part.type in TEXTS:
        return part.text or part.refusal or ""
    if part.type in ("image_url", "input_image") and part.image_url is not None:
        return picture(part.image_url if isinstance(part.image_url, str) else part.image_url.url, f"{where}.image_url")
    if part.type == "input_audio" and part.input_audio is not None:
        return sound(part.input_audio.data, f"{where}.input_audio")
    if part.file_id is not None:
        raise ApiError(f"{where}.file_id: no files are held here. Send a data URL.", param="messages")
    raise ApiError(
        f"{where}: {file.name} does not support parts of type {part.type[:100]!r} here. Send text, image_url or "
        "input_audio.",
        param="messages",
    )
