"""Chat templates that a request or a model's settings give, rendered outside the gateway and without Python's objects.

minijinja is Jinja without Python underneath: a template can reach nothing but the values it is given. It runs in a
process with limits, for its parser recurses and a template can make as much text as it likes; see `bounded.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kvant.errors import ApiError, LimitError, ModelfileError, TemplateRefusedError
from kvant.hub.gotemplate import MAX_CHARACTERS, is_go_template, jinja_of
from kvant.runtime.bounded import Bounded, Refused, Render, Text

MAX_TEMPLATE_CHARACTERS = MAX_CHARACTERS


def render(
    bounded: Bounded,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Turn a conversation into the text a model was trained to continue; call it in a thread, for it waits.

    Args:
        bounded: Where it is done.
        template: Jinja source.
        messages: In OpenAI's form.
        bos_token: Text of the start token.
        eos_token: Text of the end token.
        tools: In OpenAI's form.
        arguments: More values for the template.
        add_generation_prompt: End with the start of the assistant's answer.

    Raises:
        ApiError: The template is not valid, refuses the conversation, or does too much.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ApiError(
            f"template: {len(template)} characters exceed the limit of {MAX_TEMPLATE_CHARACTERS}. Use another one.",
            param="template",
        )
    if is_go_template(template):
        try:
            template = jinja_of(template)
        except ModelfileError as error:
            raise ApiError(str(error).replace("TEMPLATE", "template"), param="template") from None
    values: dict[str, Any] = dict(arguments or {}) | {
        "messages": list(messages), "bos_token": bos_token, "eos_token": eos_token, "tools": tools,
        "add_generation_prompt": add_generation_prompt,
    }  # fmt: skip
    try:
        reply = bounded.ask(Render(template, values), "template")
    except LimitError as error:
        raise ApiError(str(error), param="template") from None
    if isinstance(reply, Refused):
        raise TemplateRefusedError(f"template: {reply.reason}. Use another one.", param="template")
    assert isinstance(reply, Text)
    return reply.text


def abilities(template: str) -> list[str]:
    """Return what a chat template gives a model, in Ollama's words, told by what it mentions."""
    found = ["tools"] if "tools" in template else []
    if "enable_thinking" in template or "<think>" in template:
        found.append("thinking")
    return found
