"""What people write stays text in what an engine is sent.

A conversation that spells no control token, which is nearly every one, is sent as it is. Of one that does, the tokens
are made here (`runtime.plaintext`) and sent in place of the messages. Where the engine must read the answer, for calls
of tools or thinking, or has pictures to put between the words, it can only be sent messages: there a character that is
not seen is put into each spelling, so that it is text, and taken out of the answer again. The same is done to schemas,
since the engine would write a control token where one spells it.
"""

import dataclasses

from kvant.errors import ApiError
from kvant.generate.prompt import Chat
from kvant.runtime.plaintext import Controls, Disguise, joiner_for


def plain(prompt: Chat, controls: Controls, *, thinks: bool, by_engine: bool) -> Chat:
    """Return a conversation in which what was written is text.

    Args:
        prompt: The conversation; what is `Trusted` in it may hold control tokens.
        controls: The model's.
        thinks: Whether the model can think.
        by_engine: Whether the engine renders the messages.

    Raises:
        ApiError: It cannot be made safe.
        LimitError: It spells control tokens in more ways than anybody would.
    """
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
    thinks = thinks and prompt.think is not False
    read = thinks or (prompt.tools and not prompt.forced)
    if not prompt.media and (not read or prompt.context or not by_engine):
        return dataclasses.replace(prompt, disguise=disguise)
    messages, tools, effort = disguise.joined(prompt.written, joiner)
    call = disguise.joined(prompt.call, joiner)
    return dataclasses.replace(prompt, messages=messages, tools=tools, effort=effort, call=call)
