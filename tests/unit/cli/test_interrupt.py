"""Ctrl-C twice, in a process of its own: the second one ends it wherever the first one has got to."""

import os
import signal
import subprocess
import sys

import pytest

BEGIN = "import sys, threading, time\nfrom kvant.cli import interrupt\ninterrupt.watch()\n"
CASES = {
    "in a finally": """
try:
    print("ready", flush=True); time.sleep(60)
finally:
    print("unwinding", flush=True); time.sleep(60)
""",
    "in the interpreter's end": """
threading.Thread(target=time.sleep, args=(60,)).start()
try:
    print("ready", flush=True); time.sleep(60)
except KeyboardInterrupt:
    print("unwinding", flush=True); sys.exit(130)
""",
    "in a callback": """
class Slow:
    def __del__(self):
        print("unwinding", flush=True); time.sleep(60)
def work():
    slow = Slow(); print("ready", flush=True); time.sleep(60)
try:
    work()
except KeyboardInterrupt as error:
    error.__traceback__ = None
""",
}
DEALT_WITH = """
for _ in range(3):
    try:
        print("ready", flush=True); time.sleep(60)
    except KeyboardInterrupt:
        interrupt.go_on()
print("whole", flush=True)
"""
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("case", CASES)
def test_the_second_ends_at_once_and_without_a_traceback(case: str) -> None:
    with start(CASES[case]) as process:
        assert process.stdout is not None
        for word in ("ready\n", "unwinding\n"):
            assert process.stdout.readline() == word
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_one_that_was_dealt_with_does_not_count() -> None:
    with start(DEALT_WITH) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("whole\n", "")
    assert process.returncode == 0
