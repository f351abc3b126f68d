import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import FormatError
from kvant.evaluate.windows import Windows
from kvant.files import cache_dir
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import Silent
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure import selftext
from kvant.recipes.measure.selftext import around_request, openings, self_windows, text_of, write_rows
from kvant.runtime.process import EngineProcess
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model

pytestmark = pytest.mark.heavy

CONTEXT = 64
START, END = 1, 2  # <|im_start|> and <|im_end|> of the tiny tokenizer


def tiny(directory: Path, family: str = "llama", template: str | None = None) -> Model:
    source = write_tiny_model(family, directory / "hf", num_hidden_layers=1)
    config = source / "tokenizer_config.json"
    if template is not None:
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    path = directory / "tiny.gguf"
    convert(source, path, to="gguf", type="F32")
    return read_gguf(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny(tmp_path_factory.mktemp("self"))


class Heard(Silent):
    """Keeps what it is told, and may interrupt like a person after a number of tokens."""

    def __init__(self, patience: float = 1e9) -> None:
        self.said: list[str] = []
        self.total, self.patience = 0.0, patience

    def start(self, _task: str, total: float, _unit: str) -> None:
        self.total = total

    def advance(self, _task: str, amount: float) -> None:
        self.patience -= amount
        if self.patience < 0:
            raise KeyboardInterrupt

    def say(self, message: str) -> None:
        self.said.append(message)


def write(model: Model, count: int, *, seed: int = 1, threads: int = 1, progress: Silent | None = None) -> np.ndarray:
    text, windows = self_windows(
        model,
        model.path,
        "identity",
        context=CONTEXT,
        count=count,
        seed=seed,
        threads=threads,
        progress=progress or Silent(),
    )
    assert text.label == f"kvant:self:seed-{seed}"
    assert text.sha256 == hashlib.sha256(windows.tokens.tobytes()).hexdigest()
    assert windows.domains == tuple(("chat", "plain")[i % 2] for i in range(count))
    assert windows.tokens.shape == (count, CONTEXT)
    return windows.tokens


def test_windows_are_the_same_for_a_seed_and_kept(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftext, "GROUP", 3)
    four = write(model, 4)
    assert (four[::2, 0] == START).all()
    assert len({row.tobytes() for row in four}) == 4
    again = Heard()
    np.testing.assert_array_equal(write(model, 4, progress=again), four)
    assert again.total == 0
    more = Heard()
    np.testing.assert_array_equal(write(model, 5, progress=more)[:3], four[:3])
    assert more.total == 2 * CONTEXT  # the first group of three was there
    assert (write(model, 4, seed=2) != four).any()
    monkeypatch.setenv("KVANT_HOME", str(tmp_path))
    np.testing.assert_array_equal(write(model, 4, threads=2), four)


def test_an_interrupted_run_keeps_the_groups_it_finished(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftext, "GROUP", 2)
    with pytest.raises(KeyboardInterrupt):
        write(model, 6, progress=Heard(patience=3 * CONTEXT))
    rest = Heard()
    write(model, 6, progress=rest)
    assert rest.total == 4 * CONTEXT


@pytest.mark.parametrize("damage", [b"no array", b""])
def test_a_damaged_cache_is_an_error(model: Model, damage: bytes) -> None:
    write(model, 1)
    (path,) = cache_dir("self").rglob("*.npy")
    path.write_bytes(damage)
    with pytest.raises(FormatError, match="Remove it"):
        write(model, 1)
    np.save(path, np.zeros((1, CONTEXT + 1), np.int32))
    with pytest.raises(FormatError, match=r"int32 \[1, 65\] is not int32 \[windows, 64\]"):
        write(model, 1)


class Script:
    """An engine that follows a script: the next token of each sequence that grew, and what was appended."""

    def __init__(self, *steps: Sequence[int]) -> None:
        self.steps, self.appended = list(steps), list[list[list[int]]]()

    def ends(self) -> frozenset[int]:
        return frozenset({END})

    def extend(self, parts: Sequence[Sequence[int]]) -> np.ndarray:
        self.appended.append([list(part) for part in parts])
        return np.where(np.arange(N_VOCAB) == np.array(self.steps.pop(0))[:, None], 0, -np.inf).astype(np.float32)


def test_another_text_begins_after_an_end_and_windows_end_apart() -> None:
    engine = Script([10, 20], [END, 21], [22], [12], [13])
    chances = [np.random.default_rng(i) for i in range(2)]
    rows = write_rows(engine, [lambda _: [7, 8], lambda _: [9]], chances, 6)  # type: ignore[arg-type]
    assert rows.tolist() == [[7, 8, 10, END, 7, 8], [9, 20, 21, 22, 12, 13]]
    assert engine.appended[:4] == [[[7, 8], [9]], [[10], [20]], [[], [21]], [[], [22]]]


def test_a_long_opening_is_cut_to_the_window() -> None:
    rows = write_rows(Script([3]), [lambda _: list(range(40, 60))], [np.random.default_rng(0)], 8)  # type: ignore[arg-type]
    assert rows.tolist() == [list(range(40, 48))]


@pytest.mark.parametrize(("family", "starts"), [("llama", []), ("tinyllama", [1])])
def test_openings_are_requests_in_the_template_and_random_tokens(
    tmp_path: Path, family: str, starts: list[int]
) -> None:
    model = tiny(tmp_path, family)
    with EngineProcess() as engine:
        engine.open(model.path, n_ctx=64, n_threads=1, vocab_only=True)
        kinds = openings(model, engine)
        chance = np.random.default_rng(0)
        plain = [kinds["plain"](chance) for _ in range(50)]
        chats = [kinds["chat"](chance) for _ in range(20)]
        texts = [b"".join(engine.pieces(chat)).decode() for chat in chats]
    assert all(row[:-1] == starts for row in plain)
    assert len({row[-1] for row in plain}) > 30
    assert all(row[: len(starts)] == starts for row in chats)
    assert len(set(texts)) > 15
    assert all("user\n" in text and "assistant\n" in text and selftext._MARK not in text for text in texts)


@pytest.mark.parametrize(
    ("template", "said"),
    [("{{ raise_exception('no') }}", 1), ("hello", 0), ("{% for m in messages %}{{ m.content * 2 }}{% endfor %}", 0)],
)
def test_a_template_that_cannot_be_used_leaves_plain_text(tmp_path: Path, template: str, said: int) -> None:
    heard = Heard()
    assert around_request(tiny(tmp_path, template=template), heard) is None
    assert len(heard.said) == said


def test_a_model_without_a_template_writes_plain_text(tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "hf", num_hidden_layers=1)
    config = source / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"}
    config.write_text(json.dumps(kept))
    assert around_request(open_model(source)) is None


def test_the_text_is_what_the_tokens_say(model: Model) -> None:
    with EngineProcess() as engine:
        engine.open(model.path, n_ctx=CONTEXT, n_threads=1, vocab_only=True)
        ids = engine.tokenize("the rain keeps")
        windows = Windows(tokens=np.stack([ids, ids[::-1], ids]), domains=("chat", "plain", "chat"))
        text = text_of(engine, windows, 7)
    assert [part.domain for part in text.parts] == ["chat", "plain"]
    assert text.parts[0].text == "the rain keeps\nthe rain keeps"
    assert len({text.sha256, *(part.sha256 for part in text.parts)}) == 3
