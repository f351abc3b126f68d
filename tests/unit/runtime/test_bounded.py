"""Processes in which what clients wrote is parsed: they end over what is too much, and the next request works."""

import threading
import time
from collections.abc import Iterator

import pytest

from kvant.errors import EngineError, LimitError
from kvant.runtime.bounded import Bounded, Render, Text, Tried, Try

pytestmark = pytest.mark.heavy

HI = {"messages": [{"role": "user", "content": "Hi"}]}
GOOD = Render("{{ messages[0].content }}", HI)


@pytest.fixture
def bounded() -> Iterator[Bounded]:
    made = Bounded(cpu_s=1, n=1)
    yield made
    made.close()


def test_an_end_is_one_requests_error(bounded: Bounded) -> None:
    for _ in range(2):
        with pytest.raises(LimitError, match=r"^template: takes over 1 s, 1.07 GB or the depth of the stack"):
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


def test_the_limit_that_is_told_is_the_one_that_holds() -> None:
    bounded = Bounded(cpu_s=1, n=1, memory_bytes=768 << 20)
    with pytest.raises(LimitError, match=r"1 s, 805.3 MB or"):
        bounded.ask(Render("{{ " + "-" * 60_000 + "1 }}", HI), "template")
    bounded.close()


def test_an_end_reaches_those_that_work_and_those_that_wait() -> None:
    bounded = Bounded(cpu_s=60, n=1)
    said: list[Exception] = []

    def ask() -> None:
        try:
            bounded.ask(Try('%llguidance {}\nstart: %json {"type":"integer","multipleOf":100000007}', "lark"), "format")
        except EngineError as error:
            said.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not bounded._all:  # until one works
        time.sleep(0.01)
    bounded.close()
    for thread in threads:
        thread.join(30)
    assert [str(error) for error in said] == ["kvant: is shutting down. Try again later."] * 3
    assert not bounded._all
