"""Conversations in the forms that templates take."""

from typing import Any

from kvant.generate.turns import plainer


def of(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_instructions_go_to_the_front_and_neighbours_become_one() -> None:
    talk = of(("user", "a"), ("system", "s"), ("user", "b"), ("system", "t"), ("assistant", "c"), ("user", "d"))

    assert plainer(talk) == of(("system", "s\n\nt"), ("user", "a\n\nb"), ("assistant", "c"), ("user", "d"))


def test_then_instructions_begin_the_first_turn() -> None:
    assert plainer(of(("system", "s"), ("user", "a"))) == of(("user", "s\n\na"))
    assert plainer(of(("user", "s\n\na"))) is None
    assert plainer(of(("system", "s"))) is None


def test_calls_and_results_stay() -> None:
    one = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    two = {"role": "assistant", "content": "x", "tool_calls": [{"id": "2"}]}
    results = [{"role": "tool", "content": "r", "tool_call_id": str(i)} for i in (1, 2)]

    made = plainer([one, two, *results])

    both = {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}, {"id": "2"}]}
    assert made == [both, *results]
