"""Thinking before an answer that is held to a schema: as the template begins it, ended once, then the answer alone."""

import asyncio

import pytest

from kvant.generate.grammars import lark
from kvant.generate.thoughts import rules
from kvant.runtime.grammar import Matcher

TEMPLATE = "{% if x %}<think>{% endif %}</think>"
SCHEMA = {"enum": ["yes"]}


def takes(prompt: str, text: str, *, thinks: bool = True, template: str = TEMPLATE) -> bool:
    async def token(_: str) -> int | None:
        return None

    before = asyncio.run(rules(template, prompt, token, thinks=thinks))
    with Matcher(lark(SCHEMA, before)) as matcher:
        assert matcher.error is None
        return matcher.accepts(text.encode())


@pytest.mark.parametrize(
    ("prompt", "text", "thinks", "right"),
    [
        ("assistant\n", '"yes"', True, True),
        ("assistant\n", '<think>so "no"?</think>\n\n"yes"', True, True),
        ("assistant\n", '<think>so</think>"no"', True, False),
        ("assistant\n", 'so</think>"yes"', True, False),
        ("assistant\n", '<think>so</think>"yes"', False, False),
        ("assistant\n<think>\n", 'so</think>\n"yes"', True, True),
        ("assistant\n<think>\n", 'so</think>\n"yes"', False, True),
        ("assistant\n<think>\n", '"yes"', True, False),
        ("assistant\n<think>\n\n</think>\n\n", '"yes"', True, True),
        ("assistant\n<think>\n\n</think>\n\n", '<think>so</think>"yes"', True, False),
    ],
)
def test_a_thought_comes_where_the_template_has_it(prompt: str, text: str, thinks: bool, right: bool) -> None:
    assert takes(prompt, text, thinks=thinks) == right


def test_a_model_without_thinking_answers_at_once() -> None:
    assert takes("assistant\n", '"yes"', template="{{ messages }}")
    assert not takes("assistant\n", '<think>a</think>"yes"', template="{{ messages }}")


def test_special_tokens_are_named_by_their_numbers() -> None:
    async def token(text: str) -> int | None:
        return {"[THINK]": 7, "[/THINK]": 8}[text]

    made = asyncio.run(rules("[THINK][/THINK]", "assistant", token, thinks=True))
    assert "<[7]> thought" in made
    assert "/ <[8]>" in made
