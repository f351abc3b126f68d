"""What clients write stays text: control tokens of a prompt come from the chat template and the operator alone."""

import asyncio

from kvant.errors import ApiError, LimitError
from kvant.formats.gguf.reader import read_gguf
from kvant.generate.plain import plain
from kvant.generate.prompt import Chat, Prompt
from kvant.runtime.plaintext import Controls
from kvant.runtime.server.workers import Worker
from kvant.serve.gateway import Gateway
from kvant.serve.library import ModelFile

MAX_KNOWN = 64


async def guarded(prompt: Prompt, file: ModelFile, worker: Worker, here: Gateway) -> Prompt:
    """Return a prompt in which what the client wrote is text; texts to continue are the client's own, and stay.

    Args:
        prompt: What the client asks.
        file: The model.
        worker: It, loaded.
        here: The gateway, whose operator may trust prompts.

    Raises:
        ApiError: The conversation cannot be made safe.
    """
    if not isinstance(prompt, Chat) or here.settings.trust_prompt_tokens:
        return prompt
    controls = await controls_of(file, here)
    try:  # in a thread: a body may have megabytes
        return await asyncio.to_thread(
            plain, prompt, controls, thinks="thinking" in file.capabilities, by_engine=prompt.by_engine(worker)
        )
    except LimitError as error:
        raise ApiError(str(error), param="messages") from None


async def controls_of(file: ModelFile, here: Gateway) -> Controls:
    """Return a model's control tokens; its header is read in a thread, once for all who ask."""
    reading = here.controls.get(file.digest)
    if reading is None or (reading.done() and (reading.cancelled() or reading.exception())):
        while len(here.controls) >= MAX_KNOWN:
            here.controls.pop(next(iter(here.controls)))
        reading = asyncio.ensure_future(asyncio.to_thread(lambda: Controls.of(read_gguf(file.path))))
        here.controls[file.digest] = reading
    return await asyncio.shield(reading)
