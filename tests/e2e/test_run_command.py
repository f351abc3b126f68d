"""`kvant run` from the outside: one question, a pipe, a conversation in a terminal with Ctrl-C."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvant.testing.tiny_models import write_tiny_model

pty = pytest.importorskip("pty", reason="terminals of this kind are Unix's")
KVANT = [sys.executable, "-m", "kvant.cli.main", "run"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its end token is a padding token that it never chooses.
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny"), max_position_embeddings=8192)


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KVANT, *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_one_question_of_a_directory_twice(directory: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "4", "--json")

    first, second = (run(str(directory), "Hello", *options) for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Converting" in first.stderr
    assert "Converting" not in second.stderr  # kept in the cache
    answers = [json.loads(result.stdout) for result in (first, second)]
    assert answers[0]["text"] == answers[1]["text"]
    assert (answers[0]["n_tokens"], answers[0]["stop"]) == (4, "length")


def test_piped_text_is_the_prompt_and_control_characters_do_not_come_out(directory: Path) -> None:
    result = run(str(directory), "--max-tokens", "40", "--temperature", "5", "--seed", "1", stdin="Hi\n")

    assert result.returncode == 0, result.stderr
    assert not set(result.stdout) & {chr(c) for c in range(32) if c not in (9, 10)}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("{model}", "x", "--temperature", "-1"), 1, "temperature: -1.0 is not from 0 to 100"),
        (("{model}", "x", "--context", "2"), 1, "context 2"),
        (("/nonexistent", "x"), 1, "/nonexistent: there is no such file"),
        ((), 2, "Missing argument"),
    ],
)
def test_failures(arguments: tuple[str, ...], status: int, message: str, directory: Path) -> None:
    result = run(*(a.format(model=directory) for a in arguments))

    assert result.returncode == status
    assert message in " ".join(result.stderr.split())


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background inherits that it is ignored
            os.execv(command[0], command)
        self.seen = ""

    def read(self) -> None:
        """Add what the program says next to what was seen."""
        assert select.select([self.fd], [], [], 300)[0], f"said nothing after {self.seen!r}"
        self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")

    def until(self, text: str) -> None:
        """Read until a text comes, and take what came before it away."""
        while text not in self.seen:
            self.read()
        self.seen = self.seen.partition(text)[2]

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def press_until(self, keys: str, text: str) -> None:
        """Press keys until a text comes; a signal that comes before an input line waits for keys can be lost."""
        for _ in range(30):
            if text in self.seen:
                return
            self.send(keys)
            while text not in self.seen and select.select([self.fd], [], [], 10)[0]:  # it comes in parts
                self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
        raise AssertionError(f"{keys!r} brought {self.seen!r}, not {text!r}")

    def end(self) -> int:
        """Say goodbye until the program ends, for a line typed before it asks can be lost; return the exit status."""
        with contextlib.suppress(OSError):  # the program has ended
            for _ in range(30):
                self.send("/bye\n")
                while select.select([self.fd], [], [], 10)[0]:
                    if not os.read(self.fd, 4096):
                        break
            os.kill(self.pid, signal.SIGKILL)  # its status says so
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_conversation_in_a_terminal(directory: Path) -> None:
    talk = Terminal(*KVANT, str(directory), "--temperature", "0", "--max-tokens", "6000", "--context", "8000")
    talk.until("/bye to end")
    talk.until(">>> ")
    talk.send("Hello\n")
    talk.until("Hello\r\n")
    while len(talk.seen) < 20:  # the answer has begun
        talk.read()
    talk.send("\x03")
    talk.until("[stopped]")
    talk.until(">>> ")

    for line, reply in (
        ("/set temperature 0.5", "temperature is 0.5"),
        ("/set temperature warm", "is not a number"),
        ("/set max_tokens 3", "max_tokens is 3"),
        ("/system You are a pirate.", "Set."),
        ("/clear", "forgotten"),
        ("/show", "repeat_penalty"),
        ("/nonsense", "'/nonsense' is not known"),
        ("/?", "/bye"),
    ):
        talk.send(line + "\n")
        talk.until(reply)
        talk.until(">>> ")
    talk.send('"""two\n')
    talk.until("... ")
    talk.send('lines"""\n')
    talk.until(">>> ")

    talk.press_until("\x03", "Press Ctrl-C again")
    talk.until(">>> ")
    assert talk.end() == 0


@pytest.mark.model
def test_the_reference_model_knows_the_capital_of_france(reference_model: Path) -> None:
    result = run(
        str(reference_model), "The capital of France is", "--raw", "--temperature", "0", "--max-tokens", "4"
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
