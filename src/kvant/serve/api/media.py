"""Pictures and sounds of a request, before it waits for a model: may the model see them, are they small enough."""

from typing import TypeVar

from starlette.requests import Request

from kvant.errors import ApiError
from kvant.generate.media import Media, check_number, check_pixels
from kvant.generate.prompt import Chat, Text
from kvant.runtime.bounded import Bounded, Inflate, Refused
from kvant.serve.api.wire import share
from kvant.serve.fetch import fetched
from kvant.serve.gateway import gateway
from kvant.serve.library import ModelFile

PromptT = TypeVar("PromptT", bound=Chat | Text)
ABILITIES = {"image": "vision", "audio": "audio"}
WORDS = {"image": "images", "audio": "audio"}


async def seen(request: Request, file: ModelFile, prompt: PromptT) -> PromptT:
    """Return a prompt whose pictures and sounds may be sent to the engine; those named by an address are fetched.

    Raises:
        ApiError: The model has no projector for them, or they break a limit.
    """
    media = prompt.media if isinstance(prompt, Chat) else []
    for part in media:
        if ABILITIES[part.kind] not in file.capabilities:
            raise ApiError(_blind(file, part), code="media_not_supported", param=part.where.partition("[")[0])
    check_number(media)
    for part in media:
        part.read()
        if part.url is not None:
            await fetched(part, allowed=gateway(request).settings.allow_media_urls)
        check_pixels(media)
        if part.kind == "image" and part.packed is not None:
            await share(request).run(_check_inflated, part, part.packed)
    return prompt


def _blind(file: ModelFile, part: Media) -> str:
    """Say that a model cannot see or hear, and what would let it."""
    what = WORDS[part.kind]
    if file.projector is not None:
        kind = file.projector.kind
        return (
            f"{part.where}: {file.name} does not support {what}: its projector {kind} is not for that. Send text alone."
        )
    return (
        f"{part.where}: {file.name} does not support {what}: it has no projector. Put its mmproj-*.gguf beside the "
        "model's file, or into the store (kvant import mmproj-NAME-F16.gguf NAME:mmproj), or send text alone."
    )


def _check_inflated(bounded: Bounded, part: Media, packed: tuple[bytes, int]) -> None:
    data, most = packed
    reply = bounded.ask(Inflate(data, most), part.where)
    if isinstance(reply, Refused):
        raise ApiError(f"{part.where}: {reply.reason}. Save it as PNG again.", code="invalid_media", param="messages")
