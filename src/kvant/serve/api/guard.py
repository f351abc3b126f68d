"""What clients write stays text: control tokens of a prompt come from the chat template and the operator alone.

A conversation that spells none, which is nearly every one, is sent as it is. Of one that does, the tokens are made here
(`runtime.plaintext`) and sent in place of the messages. Where the engine must read the answer, for calls of tools or
thinking, it can only be sent messages: there a character that is not seen is put into each spelling, so that it is
text, and taken out of the answer again. The same is done to schemas, since the engine would write a control token where
one spells it.
"""

import asyncio
import dataclasses

from kvant.errors import LimitError
from kvant.formats.gguf.reader import read_gguf
from kvant.runtime.plaintext import Controls, Disguise, joiner_for
from kvant.runtime.server.workers import Worker
from kvant.serve.api.chat import Chat, Prompt
from kvant.serve.failure import ApiError
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
        return await asyncio.to_thread(_safe, prompt, file, controls, by_engine=prompt.by_engine(worker))
    except LimitError as error:
        raise ApiError(str(error), param="messages") from None


def _safe(prompt: Chat, file: ModelFile, controls: Controls, *, by_engine: bool) -> Chat:
    given = (*prompt.written, prompt.format.schema)
    disguise = Disguise.of(given, controls)
    if disguise is None:
        return prompt
    joiner = joiner_for(given)
    if joiner is None:
        raise ApiError(
            "messages: spell control tokens and use every character that could keep them apart. Leave one of both out.",
            param="messages",
        )
    wanted = dataclasses.replace(prompt.format, schema=disguise.joined(prompt.format.schema, joiner))
    prompt = dataclasses.replace(prompt, format=wanted, joiner=joiner)
    thinks = "thinking" in file.capabilities and prompt.think is not False
    read = thinks or (prompt.tools and not prompt.forced)
    if not read or prompt.context or not by_engine:
        return dataclasses.replace(prompt, disguise=disguise)
    messages, tools, effort = disguise.joined(prompt.written, joiner)
    return dataclasses.replace(prompt, messages=messages, tools=tools, effort=effort)


async def controls_of(file: ModelFile, here: Gateway) -> Controls:
    """Return a model's control tokens; its header is read in a thread, once for all who ask."""
    reading = here.controls.get(file.digest)
    if reading is None or (reading.done() and (reading.cancelled() or reading.exception())):
        while len(here.controls) >= MAX_KNOWN:
            here.controls.pop(next(iter(here.controls)))
        reading = asyncio.ensure_future(asyncio.to_thread(lambda: Controls.of(read_gguf(file.path))))
        here.controls[file.digest] = reading
    return await asyncio.shield(reading)
