"""Children that stop half-way, talk too much, close their answers and live on, or do not read."""

import os
import sys
from pathlib import Path

import pytest

from kvant.errors import EngineError
from kvant.runtime import child as children
from kvant.runtime import messages, tokenizers
from kvant.runtime.child import Child, Reader, ask_once
from kvant.runtime.mlx import MLXProcess
from kvant.runtime.process import EngineProcess
from kvant.runtime.sandbox.policy import Policy

pytestmark = pytest.mark.heavy

IN_TIME_S = 60.0

WHOLE = "import os, sys, time\nwrite = lambda data: os.write(1, data)\n"
HALF = {
    "half a header": WHOLE + "write(b'\\x08\\x00'); time.sleep(1e6)",
    "half a body": WHOLE + "write(b'\\x08\\x00\\x00\\x00abc'); time.sleep(1e6)",
    "nothing": "import time\ntime.sleep(1e6)",
}
CLOSED = WHOLE + "os.close(1); time.sleep(1e6)"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def started(folder: Path, text: str) -> Child:
    script = folder / "script.py"
    script.write_text(text)
    return Child(Policy(reads=(str(folder),)), str(script))


def engine(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> EngineProcess:
    (folder / "odd_engine.py").write_text(text)
    monkeypatch.setattr(EngineProcess, "MODULE", "odd_engine")
    monkeypatch.setattr(EngineProcess, "files", staticmethod(lambda path: (path,)))
    process = EngineProcess(timeout_s=timeout_s)
    process._start(folder)
    return process


def mlx(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> MLXProcess:
    python = folder / "python"  # starts as kvant does, and runs another worker
    (folder / "worker.py").write_text(text)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$1" "$2" "$3" {folder}/worker.py\n')
    python.chmod(0o755)
    monkeypatch.setenv("KVANT_MLX_PYTHON", str(python))
    return MLXProcess(timeout_s=timeout_s)


@pytest.mark.parametrize("text", HALF.values(), ids=HALF)
def test_half_an_answer_is_none(package: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(package, text, monkeypatch, 0.2) as process:
        with pytest.raises(EngineError, match="no answer within 0 s"):
            process.tokenize("x")
        assert process._child is not None
        assert not process._child.lives  # it would answer the next request with this answer
        with pytest.raises(EngineError, match="ended by signal 9"):
            process.tokenize("x")


@pytest.mark.parametrize("sent", [b"", b"\x08", b"\x08\x00\x00\x00", b"\x08\x00\x00\x00abc"])
def test_the_whole_message_is_waited_for_and_no_longer(sent: bytes) -> None:
    ends = os.pipe()
    os.write(ends[1], sent)
    with pytest.raises(TimeoutError):
        messages.read_body(Reader(ends[0], 0))
    os.write(ends[1], b"line without end")
    with pytest.raises(TimeoutError):
        Reader(ends[0], 0).rest(1 << 10, line=True)
    for end in ends:
        os.close(end)


def test_a_child_that_closes_its_answers_and_lives_on_is_ended(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.0)
    with (
        engine(package, CLOSED, monkeypatch, IN_TIME_S) as process,
        pytest.raises(EngineError, match="was ended by signal 9"),
    ):
        process.tokenize("x")


def test_a_child_that_reads_nothing_is_given_up(package: Path) -> None:
    child = started(package, HALF["nothing"])
    with pytest.raises(TimeoutError):
        child.send(bytes(1 << 21), 0.2)
    child.close()


def test_what_no_reply_is_answered_with(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reply in (b"\xc1", b"\x81\xa4type\xa1\xff", messages.packed(messages.Tokens(b""))[4:] + b"x", b""):
        text = WHOLE + f"write({len(reply).to_bytes(4, 'little') + reply!r}); time.sleep(1e6)"
        with (
            engine(package, text, monkeypatch, IN_TIME_S) as process,
            pytest.raises(EngineError, match="answers what is no answer"),
        ):
            process.tokenize("x")


ODD_LINES = {
    "no JSON": (b"what?\n", "is no answer"),
    "no object": (b"[1]\n", "is no answer"),
    "too deep": (b'{"a": ' + b"[" * 3000 + b"\n", "is no answer"),
    "no text": (b'{"a": "\xff"}\n', "is no answer"),
    "nothing in it": (b"{}\n", "is no answer"),
    "another type": (b'{"n_vocab": "x", "n_params": 1, "tensor_bytes": 1, "load_s": 1}\n', "is no answer"),
    "no end": (b"x" * (2 << 20), "is no answer"),
    "no time": (b"{", r"within 0\.2 s"),
    "the end": (b"", "ended"),
}


@pytest.mark.parametrize(("line", "words"), ODD_LINES.values(), ids=ODD_LINES)
def test_what_mlx_answers(package: Path, line: bytes, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = line if len(line) < 1 << 16 else line[:1]
    data = f"data = {part!r} * {len(line) // max(1, len(part))}\nwhile data: data = data[write(data):]\n"
    text = WHOLE + data + ("time.sleep(1e6)" if line else "")
    with (
        mlx(package, text, monkeypatch, 0.2 if "within" in words else IN_TIME_S) as process,
        pytest.raises(EngineError, match=words),
    ):
        process.open(package)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WHOLE + "while True: write(bytes(1 << 16))", "answers over 262.1 kB"),
        (WHOLE + "write(b'{}')", "is no answer"),
        (WHOLE + "write(b'\\xff')", "is no answer"),
        (WHOLE + "sys.exit('said')", r"cannot load the tokenizer \(said\)"),
    ],
)
def test_what_a_tokenizer_answers(package: Path, text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlx(package, text, monkeypatch, 0).close()
    monkeypatch.setattr(tokenizers, "MAX_ANSWER_BYTES", 1 << 18)
    with pytest.raises(EngineError, match=words):
        tokenizers.by_worker("mlx", package, ["x"], [])


def test_a_descriptor_of_any_number_is_waited_for() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = 1500
    if soft < high + 1:
        resource.setrlimit(resource.RLIMIT_NOFILE, (high + 1, hard))
    ends = os.pipe()
    os.dup2(ends[0], high)
    os.write(ends[1], b"ab")
    reader = Reader(high, IN_TIME_S)
    assert [reader.read(1), reader.read(5)] == [b"a", b"b"]
    with pytest.raises(TimeoutError):
        Reader(high, 0).read(1)
    for descriptor in (*ends, high):
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_asked_once(package: Path) -> None:
    text = WHOLE + "data = sys.stdin.buffer.read()\nwrite(data[:3])\nprint('said', file=sys.stderr)\nsys.exit(4)"
    done = ask_once(started(package, text), b"abc" * (1 << 17), timeout_s=IN_TIME_S, limit=3)
    assert (done.status, done.answer, done.said) == (4, b"abc", ["said"])
    done = ask_once(started(package, text), b"abcd", timeout_s=IN_TIME_S, limit=2)
    assert done.answer is None
