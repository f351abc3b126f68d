"""Processes in which what clients wrote is parsed: they end over what is too much, and the next request works."""

from collections.abc import Iterator

import pytest

from kvant.errors import EngineError, LimitError
from kvant.serve.bounded import Bounded, Render, Text, Tried, Try

HI = {"messages": [{"role": "user", "content": "Hi"}]}
GOOD = Render("{{ messages[0].content }}", HI)


@pytest.fixture
def bounded() -> Iterator[Bounded]:
    made = Bounded(cpu_s=1, n=1)
    yield made
    made.close()


def test_an_end_is_one_requests_error(bounded: Bounded) -> None:
    for _ in range(2):
        with pytest.raises(LimitError, match=r"^template: takes over 1 s, 1024 MiB or the depth of the stack"):
            bounded.ask(Render("{{ " + "-" * 60_000 + "1 }}", HI), "template")
        assert bounded.ask(GOOD, "template") == Text("Hi")


def test_grammars_of_both_languages_are_tried(bounded: Bounded) -> None:
    assert bounded.ask(Try('%llguidance {}\nstart: "a"', "lark"), "grammar") == Tried(None)
    assert bounded.ask(Try('root ::= "a"', "gbnf"), "grammar") == Tried(None)
    for trial in (Try("%llguidance {}\nstart: b", "lark"), Try("root ::= root", "gbnf")):
        reply = bounded.ask(trial, "grammar")
        assert isinstance(reply, Tried)
        assert reply.error


def test_what_takes_too_long_is_ended(bounded: Bounded) -> None:
    slow = '%llguidance {}\nstart: %json {"type":"integer","multipleOf":1000003}'
    with pytest.raises(LimitError, match=r"^format: takes over 1 s"):
        bounded.ask(Try(slow, "lark"), "format")
    assert bounded.ask(GOOD, "template") == Text("Hi")


def test_after_the_end_nothing_is_done(bounded: Bounded) -> None:
    assert bounded.ask(GOOD, "template") == Text("Hi")
    bounded.close()
    with pytest.raises(EngineError, match="shutting down"):
        bounded.ask(GOOD, "template")
