"""The conversation loop of `kvant run`, with a fake conversation and fake keys."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.cli import run as module
from kvant.errors import EngineError
from kvant.generate.sampling import RUN_DEFAULTS
from kvant.recipes.chat import Answer, Chat


class FakeChat:
    """Answers every message with itself in capitals."""

    def __init__(self) -> None:
        self.path, self.context, self.max_tokens = Path("m.gguf"), 100, 10
        self.template: str | None = "T"
        self.system: str | None = None
        self.sampling = dict(RUN_DEFAULTS)
        self.asked: list[str] = []
        self.during: Callable[[], object] = lambda: None

    def set(self, name: str, value: float) -> None:
        Chat.set(self, name, value)  # type: ignore[arg-type]

    def clear(self) -> None:
        self.asked.append("<cleared>")

    def ask(self, text: str, *, on_text: Callable[[str], object], stopped: Callable[[], bool]) -> Answer:
        self.asked.append(text)
        if text == "fail":
            raise EngineError("m.gguf: broke. Try again.")
        on_text(text.upper() + "\x1b[2J")
        self.during()
        stop: Any = "stopped" if stopped() else "end"
        return Answer(
            text=text, stop=stop, n_prompt=1, n_tokens=1, prompt_s=1.0, generate_s=1.0,
            dropped_turns=2 if text == "full" else 0,
        )  # fmt: skip


def talk(chat: FakeChat, monkeypatch: pytest.MonkeyPatch, *keys: str | type[BaseException]) -> None:
    lines = iter(keys)

    def read(_prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    module._talk(chat)  # type: ignore[arg-type]
    assert list(lines) == []


Captured = pytest.CaptureFixture[str]


def test_messages_and_control_characters(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    chat = FakeChat()
    talk(chat, monkeypatch, "hello", "", "  ", '"""a', "", 'b"""', '"""', 'c"""', "one \\", "two", '"""d"""', "/bye")

    assert chat.asked == ["hello", "a\n\nb", "c", "one \ntwo", "d"]
    assert "HELLO\\x1b[2J\n" in capsys.readouterr().out


def test_leaving(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for keys in (("/exit",), (EOFError,), (KeyboardInterrupt, KeyboardInterrupt)):
        talk(FakeChat(), monkeypatch, *keys)
    talk(FakeChat(), monkeypatch, KeyboardInterrupt, "hello", KeyboardInterrupt, "/bye")  # not in a row

    assert capsys.readouterr().out.count("Press Ctrl-C again") == 3


def test_ctrl_c_stops_an_answer_and_a_second_one_interrupts(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    before = signal.getsignal(signal.SIGINT)
    chat = FakeChat()
    chat.during = lambda: signal.raise_signal(signal.SIGINT)
    talk(chat, monkeypatch, "long", "/bye")
    assert "[stopped]" in capsys.readouterr().out

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    chat.during = twice
    talk(chat, monkeypatch, "longer", KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_settings(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    chat = FakeChat()
    talk(
        chat, monkeypatch, "/set temperature 0", "/set seed 7", "/set max_tokens 5", "/system Be brief.", "/clear",
        "/set top_k 1.5", "/set top_p 3", "/set colour 1", "/set", "/set max_tokens 0", "/what", "/show", "/?", "/bye",
    )  # fmt: skip

    assert (chat.sampling["temperature"], chat.sampling["seed"], chat.max_tokens) == (0.0, 7, 5)
    assert (chat.system, chat.asked) == ("Be brief.", ["<cleared>"])
    found = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in found.err.splitlines()] == [
        'option "top_k" must be of type integer', "top_p", "setting", "setting", "max_tokens", "command",
    ]  # fmt: skip
    assert "seed              7" in found.out


def test_an_error_does_not_end_the_conversation(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    chat = FakeChat()
    chat.template = None
    talk(chat, monkeypatch, "fail", "full", "/bye")

    found = capsys.readouterr()
    assert "m.gguf: broke" in found.err
    assert "the oldest 2 messages" in found.err
    assert "no chat template" in found.out
