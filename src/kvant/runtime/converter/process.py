"""Run upstream's converter in a confined process: it reads one directory and writes one file, and nothing else.

It has no network, none of its user's files and no code of the model; see docs/explanation/sandbox.md.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import EngineError, UnsupportedModelError
from kvant.progress import SILENT, Progress
from kvant.runtime.child import Child
from kvant.runtime.converter.environment import Converter
from kvant.runtime.converter.runner import UNKNOWN
from kvant.runtime.sandbox import spawn
from kvant.runtime.sandbox.policy import Policy

TIMEOUT_S = 12 * 3600
LOOK_S = 0.2
MAX_ANSWER_BYTES = 1 << 20
OPEN_FILES = 4096
_SHOWN = 400
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Answer(msgspec.Struct, frozen=True):
    """What the converter's first code answers.

    Attributes:
        pre: The pre-tokenizer that was put in for an unknown vocabulary; empty if none was.
        error: Why there is no file, `KIND: MESSAGE`; empty if there is one.
    """

    pre: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One conversion.

    Attributes:
        subject: The model, for messages.
        directory: What is read: a directory that holds the model's checked files and nothing else.
        out: The file to write; its directory is all that can be written in.
        kind: Type of the matrices as the converter calls it: f32, f16, bf16, q8_0.
        pre: Pre-tokenizer for a vocabulary whose hash the converter does not know; empty if kvant knows none either.
        no_pre: Why it does not.
        expected_bytes: About what will be written, for the progress.
        max_bytes: Most that may be.
        threads: Threads of its products; 0 for its own choice.
        options: Further options of the converter's.
    """

    subject: Path
    directory: Path
    out: Path
    kind: str
    pre: str
    no_pre: str
    expected_bytes: int
    max_bytes: int
    threads: int = 0
    options: Sequence[str] = ()


def run(converter: Converter, task: Task, *, progress: Progress = SILENT) -> Answer:
    """Convert; the file is there when this returns.

    Raises:
        UnsupportedModelError: Its tokenizer is one that nobody knows.
        EngineError: The converter fails, crashes or takes longer than `TIMEOUT_S`.
    """
    folder = task.out.parent
    asked = {
        "root": str(converter.source), "pre": task.pre,
        "arguments": [str(task.directory), "--outfile", str(task.out), "--outtype", task.kind, *task.options],
    }  # fmt: skip
    policy = Policy(
        reads=(str(task.directory), str(converter.source)), writes=(str(folder),), file_bytes=task.max_bytes,
        address_space_bytes=spawn.address_space_bytes(), open_files=OPEN_FILES, parent=spawn.owner(),
    )  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(task.threads)} if task.threads else {}
    child = Child(
        policy, str(Path(__file__).with_name("runner.py")), json.dumps(asked), python=converter.python, isolated=True,
        environment={"HOME": str(folder), "TMPDIR": str(folder), **_OFFLINE, **threads},
    )  # fmt: skip
    try:
        child.end_requests()
        text = _answer(child, task, converter.title, progress)
        status, said = child.status(), child.said()
    finally:
        child.close()
    try:
        answer = msgspec.json.decode(text, type=Answer)
    except JSON_ERRORS:
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        raise EngineError(
            f"{task.subject}: {converter.title} ended with {ended} ({_last(said)}). Is there memory enough?"
        ) from None
    _check(answer, task, converter.title, said)
    return answer


def _answer(child: Child, task: Task, title: str, progress: Progress) -> bytes:
    """Wait for the answer, and tell meanwhile how far the file has grown."""
    until, parts, size, done = time.monotonic() + TIMEOUT_S, [], 0, 0
    progress.start("convert", task.expected_bytes, "B")
    while True:
        try:
            part = child.reader(LOOK_S).read(MAX_ANSWER_BYTES)
        except TimeoutError:
            with contextlib.suppress(OSError):
                grown = min(task.out.stat().st_size, task.expected_bytes)
                progress.advance("convert", grown - done)
                done = grown
            if time.monotonic() > until:
                raise EngineError(
                    f"{task.subject}: {title} took longer than {TIMEOUT_S} s. Convert a smaller model."
                ) from None
            continue
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise EngineError(f"{task.subject}: {title} answers over {MAX_ANSWER_BYTES} bytes. Check the model.")
    progress.finish("convert")
    return b"".join(parts)


def _check(answer: Answer, task: Task, title: str, said: Sequence[str]) -> None:
    kind, _, message = answer.error.partition(": ")
    if kind == UNKNOWN:
        raise UnsupportedModelError(
            f"{task.subject}: its tokenizer is none that {title} knows: that tells pre-tokenizers apart by hashes "
            f"of published vocabularies, and kvant by what they do, where it finds none either ({task.no_pre}). Take "
            f"the tokenizer of the model that it was trained from."
        )
    if answer.error or not task.out.is_file():
        what = _last(said) if kind == "SystemExit" or not answer.error else f"{kind}: {message[:_SHOWN]}"
        raise EngineError(
            f"{task.subject}: {title} fails ({' '.join(what.split())}). It reads what transformers "
            f"writes: check that all files are there, and that `architectures` names the model's class."
        )


def _last(said: Sequence[str]) -> str:
    return " | ".join(said[-2:])[-_SHOWN:] or "it said nothing"
