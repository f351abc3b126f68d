"""Chat templates that a request or a model's settings give, rendered with bounded work and without Python's objects.

minijinja is Jinja without Python underneath: a template can reach nothing but the values it is given. Fuel bounds its
steps, so a loop without end is an error.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from kvant.errors import MissingDependencyError, ModelfileError
from kvant.hub.gotemplate import is_go_template, jinja_of
from kvant.serve.api.failure import ApiError

MAX_TEMPLATE_CHARACTERS = 1 << 18
MAX_TEXT_CHARACTERS = 1 << 24
FUEL = 2_000_000


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Turn a conversation into the text a model was trained to continue.

    Args:
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
    try:
        import minijinja
    except ImportError:
        raise MissingDependencyError("minijinja: is not installed. Run: pip install 'kvant[serve]'") from None
    environment = minijinja.Environment(
        templates={"chat": template}, trim_blocks=True, lstrip_blocks=True, auto_escape_callback=lambda _: False,
        pycompat=True, fuel=FUEL, globals={"raise_exception": _raise, "strftime_now": _now},
    )  # fmt: skip
    values: dict[str, Any] = dict(arguments or {}) | {
        "messages": list(messages), "bos_token": bos_token, "eos_token": eos_token, "tools": tools,
        "add_generation_prompt": add_generation_prompt,
    }  # fmt: skip
    try:
        text = environment.render_template("chat", **values)
    except (minijinja.TemplateError, _Refused, ValueError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ApiError(f"template: {said[0][:500].rstrip('.')}. Use another one.", param="template") from None
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ApiError(f"template: makes {len(text)} characters, above {MAX_TEXT_CHARACTERS}. Use another one.")
    return text


class _Refused(Exception):  # noqa: N818
    """A template refuses a conversation."""


def _raise(message: str) -> str:
    raise _Refused(message)


def _now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)
