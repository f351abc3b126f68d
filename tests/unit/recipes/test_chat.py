from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.errors import UnsupportedModelError, ValueRangeError
from kvant.formats.gguf.writer import write_gguf
from kvant.metadata import Value, ValueType, array, string, u32
from kvant.recipes import chat as module
from kvant.recipes.chat import Chat, chat_file
from kvant.runtime.sampling import Sampling

END = 256
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"


class FakeEngine:
    """An engine whose tokens are bytes and whose answers are given beforehand."""

    answers: Iterator[bytes] = iter(())

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.read: list[int] = []
        self.closed = False
        self.n_read = 0

    def open(self, path: Path, **options: Any) -> None:
        self.options = {"path": path, **options}

    def close(self) -> None:
        self.closed = True

    def ends(self) -> frozenset[int]:
        return frozenset({END})

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray:
        assert parse_special is ("[user]" in text)
        self.prompts.append(("^" if add_special else "") + text)
        self.script: list[int] | None = None
        return np.array(list(text.encode()), np.int32)

    def pieces(self, ids: list[int]) -> list[bytes]:
        return [bytes(ids)]

    def next_logits(self, tokens: list[int]) -> np.ndarray:
        same = next((i for i, (a, b) in enumerate(zip(self.read, tokens, strict=False)) if a != b), len(self.read))
        self.n_read += len(tokens) - min(same, len(tokens) - 1)
        self.read = tokens
        if self.script is None:
            if len(tokens) % module.CHUNK == 0 and len(tokens) < self.n_prompt():
                return np.zeros(END + 1, np.float32)
            self.script = [*next(self.answers), END]
        logits = np.zeros(END + 1, np.float32)
        logits[self.script.pop(0)] = 9.0
        return logits

    def n_prompt(self) -> int:
        return len(self.prompts[-1].lstrip("^").encode())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(module, "EngineProcess", lambda: fake)
    return fake


def model(path: Path, **extra: Value) -> Path:
    metadata = {
        "general.architecture": string("llama"),
        "llama.context_length": u32(400),
        "tokenizer.chat_template": string(TEMPLATE),
        "tokenizer.ggml.tokens": array(ValueType.STRING, ["<s>", "</s>"]),
        "tokenizer.ggml.bos_token_id": u32(0),
        **extra,
    }
    write_gguf(path / "m.gguf", metadata, [], overwrite=True)
    return path / "m.gguf"


GREEDY = Sampling(temperature=0)


def test_a_conversation_grows_and_its_start_is_not_read_again(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter([b"one", "zw\u00f6lf".encode()])
    heard: list[str] = []
    with Chat(model(tmp_path), system="S", sampling=GREEDY) as chat:
        first = chat.ask("a", on_text=heard.append)
        second = chat.ask("b", on_text=heard.append)

    assert (first.text, first.stop, first.n_tokens) == ("one", "end", 3)
    assert second.text == "zwölf"
    assert heard == ["o", "n", "e", "z", "w", "ö", "l", "f"]  # never half a character
    assert engine.prompts == ["^[system]S[user]a>", "^[system]S[user]a[assistant]one[user]b>"]
    assert engine.n_read < len("[system]S[user]a>one") + len("[assistant]one[user]b>zwölf".encode()) + 3
    assert engine.closed


def test_start_token_is_not_doubled(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter([b"x"])
    with Chat(model(tmp_path, **{"tokenizer.chat_template": string("{{ bos_token }}" + TEMPLATE)})) as chat:
        chat.ask("a")

    assert engine.prompts == ["<s>[user]a>"]


def test_raw_text_and_models_without_a_template_are_continued(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter([b" upon"])
    with Chat(model(tmp_path), raw=True, sampling=GREEDY) as chat:
        assert chat.ask("Once").text == " upon"
    assert engine.prompts == ["^Once"]


def test_a_full_context_drops_the_oldest_turns(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter([b"x" * 50] * 4)
    with Chat(model(tmp_path), sampling=GREEDY, max_tokens=60) as chat:
        answers = [chat.ask("y" * 80) for _ in range(4)]
        kept = len(chat.messages)

    assert [a.dropped_turns for a in answers] == [0, 0, 2, 2]
    assert kept == 4


def test_lengths(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter([b"abcdef", b"z" * 500])
    path = model(tmp_path)
    with Chat(path, sampling=GREEDY, max_tokens=3) as chat:
        assert (answer := chat.ask("a")).text == "abc"
        assert answer.stop == "length"
        with pytest.raises(ValueRangeError, match="do not fit the context of 400"):
            chat.ask("y" * 500)
        assert len(chat.messages) == 2  # the message that did not fit is not kept
    with pytest.raises(ValueRangeError, match="context 4"):
        Chat(path, context=4)


def test_stopped_between_tokens(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter([b"abcdef"])
    heard: list[str] = []
    with Chat(model(tmp_path), sampling=GREEDY) as chat:
        answer = chat.ask("a", on_text=heard.append, stopped=lambda: len(heard) == 2)

    assert (answer.text, answer.stop) == ("ab", "stopped")
    assert chat.messages[-1] == {"role": "assistant", "content": "ab"}


def test_a_character_cut_off_is_shown_as_such(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answers = iter(["é".encode()[:1]])
    with Chat(model(tmp_path), sampling=GREEDY) as chat:
        assert chat.ask("a").text == "\ufffd"


def test_long_prompts_are_read_in_pieces_that_can_be_stopped(engine: FakeEngine, tmp_path: Path) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(len(engine.read))
        return len(engine.read) >= module.CHUNK

    with Chat(model(tmp_path), sampling=GREEDY, max_tokens=5) as chat:
        answer = chat.ask("y" * 300, stopped=stopped)

    assert (answer.stop, answer.n_tokens, len(engine.read)) == ("stopped", 0, module.CHUNK)


def test_a_template_that_refuses_leaves_the_conversation_as_it_was(engine: FakeEngine, tmp_path: Path) -> None:
    path = model(tmp_path, **{"tokenizer.chat_template": string("{{ raise_exception('no') }}")})
    with Chat(path) as chat:
        with pytest.raises(UnsupportedModelError, match="no"):
            chat.ask("a")
        assert chat.messages == []
    assert engine.closed


def test_a_gguf_file_is_chatted_with_as_it_is(tmp_path: Path) -> None:
    path = model(tmp_path)
    assert chat_file(path) == path
