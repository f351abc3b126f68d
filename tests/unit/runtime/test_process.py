import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import EngineError, ValueRangeError
from kvant.recipes.convert.convert import convert
from kvant.runtime import messages
from kvant.runtime.llamacpp import LlamaCpp
from kvant.runtime.process import EngineProcess
from kvant.runtime.shared import SharedRows
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model

pytestmark = pytest.mark.heavy

WINDOWS = np.arange(3, 3 + 5 * 32, dtype=np.int32).reshape(5, 32)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("engine")
    path = directory / "tiny.gguf"
    convert(write_tiny_model("llama", directory / "hf"), path, to="gguf", type="F16")
    return path


@pytest.fixture
def engine(tiny_file: Path) -> Iterator[EngineProcess]:
    with EngineProcess() as engine:
        engine.open(tiny_file, n_ctx=64, n_threads=1, all_logits=True)
        yield engine


def pid_of(engine: EngineProcess) -> int:
    assert engine._child is not None
    return engine._child.pid


def test_the_child_gives_what_the_library_gives(engine: EngineProcess, tiny_file: Path) -> None:
    with LlamaCpp(tiny_file, n_ctx=64, n_threads=1, all_logits=True) as here:
        np.testing.assert_array_equal(engine.tokenize("the rain"), here.tokenize("the rain"))
        for window, rows in zip(WINDOWS, engine.logits(WINDOWS, first=16), strict=True):
            np.testing.assert_array_equal(rows, here.logits(window, first=16))


def test_sequences_side_by_side(engine: EngineProcess, tiny_file: Path) -> None:
    engine.next_logits([3])  # two rows are shared now; what follows needs more
    engine.open(tiny_file, n_ctx=32, n_threads=1, n_seq=4)
    parts = [window[:8].tolist() for window in WINDOWS[:4]]
    with LlamaCpp(tiny_file, n_ctx=32, n_threads=1, n_seq=4) as here:
        np.testing.assert_array_equal(engine.extend(parts), here.extend(parts))
        np.testing.assert_array_equal(engine.extend([[], [5], [], []]), here.extend([[], [5], [], []]))


def test_one_window_and_none(engine: EngineProcess) -> None:
    assert [rows.shape for rows in engine.logits(WINDOWS[:1], first=0)] == [(32, N_VOCAB)]
    assert list(engine.logits(WINDOWS[:0], first=0)) == []


def test_a_model_takes_the_place_of_another(engine: EngineProcess, tiny_file: Path) -> None:
    opened = engine.open(tiny_file, n_ctx=96, n_threads=1)
    assert opened.n_vocab == N_VOCAB
    measured = engine.speed(n_prompt=48, n_generate=8, repeats=2)
    assert measured.pp_tok_s > 0
    assert measured.tg_tok_s > 0
    assert measured.repeats <= 2
    assert measured.rss_bytes > measured.rss_before_bytes > 1_000_000


def test_another_model_gets_a_process_of_its_own(tiny_file: Path, tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for path in others:
        path.write_bytes(tiny_file.read_bytes())
    with EngineProcess(reads=(tmp_path,)) as engine:
        pids = []
        for path in (*others, tiny_file, tiny_file):
            engine.open(path, n_ctx=32, n_threads=1)
            pids.append(pid_of(engine))
    assert pids[0] == pids[1]  # both lie where it may read
    assert pids[1] != pids[2] == pids[3]


def test_what_a_hostile_child_answers_is_an_error(engine: EngineProcess) -> None:
    for reply, words in (
        (messages.Tokens(b""), "answers Tokens where Wrote"),
        (messages.Wrote(1 << 40), "break the room"),
    ):
        read, write = os.pipe()
        assert engine._child is not None
        old, engine._child.stdout = engine._child.stdout, os.fdopen(read, "rb")
        with os.fdopen(write, "wb") as stream:
            messages.write(stream, reply)
        with pytest.raises(EngineError, match=words):
            engine._receive_rows(0, N_VOCAB)
        engine._child.stdout.close()
        engine._child.stdout = old


NAN = np.full(4, np.nan, "<f4").tobytes()


@pytest.mark.parametrize(
    ("reply", "ask", "words"),
    [
        (messages.Wrote(3), lambda e: e.moments("w", 0, 8), "3 rows of 8"),
        (messages.SquareSums(bytes(24), bytes(16)), lambda e: e.squares("w"), "3 sums of 2 matrices"),
        (messages.SquareSums(bytes(24), b""), lambda e: e.squares("w"), "3 sums of 0 matrices"),
        (messages.SquareSums(bytes(23), bytes(8)), lambda e: e.squares("w"), "23 bytes of numbers"),
        (messages.Answered(bytes(16), [0.0]), lambda e: e.probe(WINDOWS[0][:4], []), "1 energies of 0 errors"),
        (messages.Answered(bytes(12), []), lambda e: e.probe(WINDOWS[0][:4], []), "3 numbers in place of 4"),
        (messages.Answered(NAN, []), lambda e: e.probe(WINDOWS[0][:4], []), "infinite or no number"),
    ],
)
def test_what_a_hostile_child_says_of_statistics_is_an_error(
    engine: EngineProcess, reply: messages.Reply, ask: Callable[[EngineProcess], object], words: str
) -> None:
    read, write = os.pipe()
    assert engine._child is not None
    old, engine._child.stdout = engine._child.stdout, os.fdopen(read, "rb")
    engine._send = lambda request: None  # type: ignore[method-assign]  # noqa: ARG005
    with os.fdopen(write, "wb") as stream:
        messages.write(stream, reply)
    with pytest.raises(EngineError, match=words):
        ask(engine)
    engine._child.stdout.close()
    engine._child.stdout = old


def test_two_replies_at_once_are_both_received(engine: EngineProcess) -> None:
    assert engine._child is not None
    read, write = os.pipe()
    old, engine._child.stdout = engine._child.stdout, os.fdopen(read, "rb")
    with os.fdopen(write, "wb") as stream:
        for rows in (1, 2):
            messages.write(stream, messages.Wrote(rows))
        engine._timeout_s = 0.0
        assert [engine._receive(messages.Wrote).rows for _ in range(2)] == [1, 2]
    engine._child.stdout.close()
    engine._child.stdout = old


def test_shared_memory_cannot_be_made_shorter() -> None:
    shared = SharedRows()
    shared.reserve(4096)
    if sys.platform == "linux":
        with pytest.raises(PermissionError):
            os.ftruncate(shared.fileno(), 0)
        os.ftruncate(shared.fileno(), 1 << 16)  # a child can; its owner then asks for less than there is
        shared.reserve(8192)
        shared.reserve(1 << 17)
        with pytest.raises(PermissionError):
            fcntl.fcntl(shared.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(EngineError, match="cannot be had"):
        shared.reserve(1 << 63)
    shared.close()
    shared = SharedRows()
    shared.reserve(4096)
    assert shared.rows(2, 8).shape == (2, 8)
    with pytest.raises(EngineError, match="break the room of 4096 bytes"):
        shared.rows(1 << 40, 8)
    with pytest.raises(EngineError, match="break the room"):
        shared.rows(-1, 8)
    shared.close()


def test_wrong_arguments_keep_the_child_alive(engine: EngineProcess) -> None:
    with pytest.raises(ValueRangeError, match="leave the vocabulary"):
        list(engine.logits(WINDOWS[:1] + 5000, first=0))
    assert engine.tokenize("still there").size


def test_a_crash_is_an_error_with_the_signal(engine: EngineProcess) -> None:
    os.kill(pid_of(engine), signal.SIGSEGV)
    with pytest.raises(EngineError, match=r"tiny\.gguf: the engine's process was ended by signal 11"):
        engine.tokenize("x")


def test_ctrl_c_is_the_owners_business(engine: EngineProcess) -> None:
    os.kill(pid_of(engine), signal.SIGINT)
    assert engine.tokenize("x").size


def test_leaving_ends_the_child(tiny_file: Path) -> None:
    with EngineProcess() as engine:
        engine.open(tiny_file, n_ctx=32, n_threads=1)
        pid = pid_of(engine)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_slow_answer_is_an_error(tiny_file: Path) -> None:
    with EngineProcess(timeout_s=0.0) as engine, pytest.raises(EngineError, match="no answer within 0 s"):
        engine.open(tiny_file, n_ctx=32, n_threads=1)


def test_memory_is_limited(tiny_file: Path) -> None:
    with EngineProcess(memory_limit_bytes=1 << 30) as engine, pytest.raises(EngineError):
        engine.open(tiny_file, n_ctx=1 << 21, n_threads=1, all_logits=True)


def test_a_bad_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    with EngineProcess() as engine, pytest.raises(EngineError, match=r"broken\.gguf"):
        engine.open(path, n_ctx=32, n_threads=1)
