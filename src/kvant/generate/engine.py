"""Questions that a running engine answers about texts and itself."""

from typing import Any

import msgspec

from kvant.generate.chunks import refusal
from kvant.runtime.server.workers import Worker


async def tokenize(worker: Worker, text: str, *, special: bool, parse: bool = True) -> list[int]:
    """Return a text's token ids.

    Args:
        worker: The model.
        text: The text.
        special: Put the start token first where the model has one.
        parse: Make control tokens of what spells them.
    """
    body = {"content": text, "add_special": special, "parse_special": parse}
    return [int(token) for token in (await asked(worker, "/tokenize", body))["tokens"]]


async def special_token(worker: Worker, text: str) -> int | None:
    """Return the id of a text that is one special token; None for one that is written as text."""
    special = await tokenize(worker, text, special=False)
    plain = await tokenize(worker, text, special=False, parse=False)
    return special[0] if len(special) == 1 and special != plain else None


async def apply_template(worker: Worker, messages: list[dict[str, Any]], **more: Any) -> str:
    """Return the prompt that the model's own template makes of messages."""
    return str((await asked(worker, "/apply-template", {"messages": messages} | more))["prompt"])


async def properties(worker: Worker) -> dict[str, Any]:
    """Return what the engine tells of itself."""
    status, body = await worker.get("/props")
    answer = msgspec.json.decode(body)
    if status != 200 or not isinstance(answer, dict):
        raise refusal(status, answer)
    return answer


async def asked(worker: Worker, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's answer.

    Raises:
        ApiError: It refused.
    """
    status, answer = await worker.post(path, body)
    if status != 200:
        raise refusal(status, answer)
    return answer
