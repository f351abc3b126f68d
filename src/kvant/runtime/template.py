"""Chat templates rendered in a process with limits: a template is a program that came with a model, so hostile input.

Three walls: Jinja's immutable sandbox (no attributes of Python objects, no changes to what is passed in), a child
process that is confined (sandbox/) and bounded in CPU time, wall time and memory, and a bound on what it may print. The
child gets the template and the messages on standard input, nothing else, and is gone after one rendering.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kvant.errors import LimitError, UnsupportedModelError
from kvant.runtime.child import Child, ask_once
from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy
from kvant.units import format_bytes

CPU_SECONDS = 5
WALL_SECONDS = 20
MEMORY_BYTES = 1 << 30
MAX_MODEL_TEMPLATE_CHARACTERS = 1 << 20
MAX_TEXT_BYTES = 16 << 20
_REFUSED = 3


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """Turn a conversation into the text a model was trained to continue.

    Args:
        template: Jinja source, as models carry it.
        messages: `{"role": ..., "content": ...}` each.
        bos_token: Text of the start token.
        eos_token: Text of the end token.
        add_generation_prompt: End with the start of the assistant's answer.

    Raises:
        UnsupportedModelError: The template is not valid, refuses this conversation, or tries what it must not.
        LimitError: It takes more time, memory or text than a template can need.
    """
    if len(template) > MAX_MODEL_TEMPLATE_CHARACTERS:
        raise LimitError(
            f"chat template: {len(template)} characters exceed the limit of {MAX_MODEL_TEMPLATE_CHARACTERS}. "
            "Use another one."
        )
    values = {
        "messages": list(messages), "bos_token": bos_token, "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
    }  # fmt: skip
    request = json.dumps({"template": template, "values": values}).encode()
    child = Child(_policy(), "-m", "kvant.runtime.template")
    try:
        done = ask_once(child, request, timeout_s=WALL_SECONDS, limit=MAX_TEXT_BYTES)
    except TimeoutError:
        raise LimitError(f"chat template: runs for over {WALL_SECONDS} s. Use another one, or --raw.") from None
    if done.status == _REFUSED:
        said = " ".join(done.said).strip(" .")
        raise UnsupportedModelError(f"chat template: {said}. Use another one, or --raw.")
    if done.status != 0 or done.answer is None:
        raise LimitError(
            f"chat template: took over {CPU_SECONDS} s, {format_bytes(MEMORY_BYTES)} or {format_bytes(MAX_TEXT_BYTES)} "
            "of text. Use another one, or --raw."
        )
    return done.answer.decode("utf-8", "replace")


def _render_here(template: str, values: Mapping[str, Any]) -> str:
    """Render in this process, the child, with what transformers gives templates beside Jinja."""
    import datetime

    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(layout: str) -> str:
        return datetime.datetime.now().astimezone().strftime(layout)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    pieces, size = [], 0
    for piece in environment.from_string(template).generate(values):
        size += len(piece)
        if size > MAX_TEXT_BYTES // 4:
            raise MemoryError
        pieces.append(piece)
    return "".join(pieces)


def _policy() -> Policy:
    """No file, and bounds; where the system has no such limits, the owner's clock remains."""
    return Policy(address_space_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS, parent=spawn.owner())


def _main() -> int:
    from jinja2 import TemplateError

    request = json.loads(sys.stdin.buffer.read())
    try:
        text = _render_here(request["template"], request["values"])
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        sys.stderr.write(str(error).splitlines()[0][:500] if str(error) else type(error).__name__)
        return _REFUSED
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
