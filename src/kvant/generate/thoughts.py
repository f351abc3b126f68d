"""How a model's thinking begins and ends, so that it may think before an answer that is held to a grammar.

The engine's own way (`response_format`) lets a model think too, but follows less of a schema.
"""

from collections.abc import Awaitable, Callable

TAGS = (
    ("<think>", "</think>"), ("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)  # fmt: skip
"""Texts that templates of models put around thinking."""

CHANNELS = "<|channel|>"
"""What marks a template whose answers have several parts; only the engine's own grammar knows them."""


Token = Callable[[str], Awaitable[int | None]]
"""Returns the id of a text that is one special token, and None for one that is written as text."""


async def rules(template: str, prompt: str, token: Token, *, thinks: bool) -> str:
    """Return rules of a grammar for what a model writes before its answer; empty where that is nothing.

    Args:
        template: The model's chat template.
        prompt: The prompt as rendered: it may end with the beginning of the thinking.
        token: Tells special tokens.
        thinks: Whether the model may begin to think by itself.
    """
    found = next(((start, end) for start, end in TAGS if start in template or end in template), None)
    if found is None:
        return ""
    start, end = found
    is_open = prompt.rstrip().endswith(start)
    if not is_open and (not thinks or prompt.rstrip().endswith(end)):  # or it is said to be over already
        return ""
    closing = await token(end)
    if closing is None:
        thought = f"thought[suffix={_quoted(end)}]: /(?s:.*)/\n"
    else:
        thought = f"thought: /(?s:.*)/ <[{closing}]>\n"
    if is_open:
        return f"before: thought space\n{thought}{_SPACE}"
    opening = await token(start)
    begin = _quoted(start) if opening is None else f"<[{opening}]>"
    return f"before: ({begin} thought space)?\n{thought}{_SPACE}"


_SPACE = "space: /[ \\n]{0,4}/\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
