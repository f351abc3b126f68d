"""Conversations with a real engine and a tiny model."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import EngineError, UnsupportedModelError, ValueRangeError
from kvant.recipes import chat as module
from kvant.recipes.chat import Chat, chat_file
from served import write_gguf

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("chat") / "m.gguf", context=400)


@contextlib.contextmanager
def chatting(path: Path, **options: Any) -> Iterator[Chat]:
    given: dict[str, Any] = {"sampling": GREEDY, "threads": 1, "max_tokens": 8} | options
    with Chat(path, **given) as chat:
        yield chat


def test_a_conversation_grows_and_what_is_heard_is_the_answer(path: Path) -> None:
    heard: list[str] = []
    with chatting(path, system="S") as chat:
        first = chat.ask("a", on_text=heard.append)
        second = chat.ask("b")
        assert "".join(heard) == first.text
        assert (first.stop, first.n_tokens) == ("length", 8)
        assert second.n_prompt > first.n_prompt
        assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
        chat.clear()
        assert chat.ask("a").text == first.text


def test_raw_text_is_continued(path: Path) -> None:
    with chatting(path, raw=True) as raw, chatting(path) as templated:
        assert raw.ask("Once").n_prompt < templated.ask("Once").n_prompt


def test_a_full_context_drops_the_oldest_turns(path: Path) -> None:
    with chatting(path, max_tokens=60) as chat:
        answers = [chat.ask("y " * 60) for _ in range(4)]
        assert sum(a.dropped_turns for a in answers) >= 2
        assert all(a.n_prompt <= 400 - 60 for a in answers)
        before = list(chat.messages)
        with pytest.raises(ValueRangeError, match="do not fit the context of 400"):
            chat.ask("y " * 500)
    assert len(chat.messages) <= len(before)
    with pytest.raises(ValueRangeError, match="context 4"):
        Chat(path, context=4)


def test_stopped_between_tokens(path: Path) -> None:
    heard: list[str] = []
    with chatting(path, max_tokens=300) as chat:
        answer = chat.ask("a", on_text=heard.append, stopped=lambda: len(heard) >= 2)
        assert answer.stop == "stopped"
        assert answer.text == "".join(heard)
        assert 0 < answer.n_tokens < 300
        assert chat.messages[-1] == {"role": "assistant", "content": answer.text}


def test_an_interrupt_ends_the_answer_and_not_the_conversation(path: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with chatting(path) as chat:
        with pytest.raises(KeyboardInterrupt):
            chat.ask("a", on_text=interrupt)
        assert chat.messages == []
        assert chat.ask("a").n_tokens == 8


def test_ways_to_choose(path: Path) -> None:
    with chatting(path) as chat:
        chat.set("temperature", 1.5)
        chat.set("seed", 3.0)
        chat.set("presence_penalty", 1.0)
        assert chat.sampling["seed"] == 3
        for name, value in (("top_p", 3.0), ("colour", 1.0), ("num_ctx", 4096.0)):
            with pytest.raises(ValueRangeError):
                chat.set(name, value)


def test_a_template_that_refuses_leaves_the_conversation_as_it_was(path: Path) -> None:
    with chatting(path, template="{{ raise_exception('no') }}") as chat:
        with pytest.raises(UnsupportedModelError, match="no"):
            chat.ask("a")
        assert chat.messages == []


def test_a_crash_is_a_sentence(path: Path) -> None:
    with chatting(path) as chat:
        chat._worker.kill()
        with pytest.raises(EngineError, match="crashed"):
            chat.ask("a")


def test_nothing_is_left_running(path: Path) -> None:
    with chatting(path) as chat:
        worker = chat._worker
    assert not worker.alive
    assert chat._loop.is_closed()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_gguf_file_is_chatted_with_as_it_is(path: Path) -> None:
    assert chat_file(path) == path
    assert module.DEFAULT_CONTEXT == 4096
