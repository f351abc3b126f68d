"""GGUF and safetensors files made to break a reader: a clear error, in bounded time and memory, never a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

import hostile_cases as cases
import raw_files as raw
from kvant.errors import FormatError, KvantError, LimitError, UnsupportedFormatError
from kvant.formats.gguf.reader import read_gguf

EXERCISES = {"gguf": cases.exercise_gguf, "safetensors": cases.exercise_safetensors}
FILES = {"gguf": cases.GGUF, "safetensors": cases.SAFETENSORS}
ALL = [(kind, name) for kind, files in FILES.items() for name in files]

# Runs every case of one kind with the memory it may take capped: what the interpreter has, and 400 MB.
_LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hostile_cases as cases
from kvant.errors import KvantError
kind, path = sys.argv[2], Path(sys.argv[3])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (90, 90))
for name, content in (cases.GGUF if kind == "gguf" else cases.SAFETENSORS).items():
    path.write_bytes(content)
    try:
        (cases.exercise_gguf if kind == "gguf" else cases.exercise_safetensors)(path)
    except KvantError:
        continue
    print("no error:", name)
"""


@pytest.mark.parametrize(("kind", "name"), ALL, ids=[f"{k}-{n}"[:80] for k, n in ALL])
def test_refused_with_a_message(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"hostile.{kind}"
    path.write_bytes(FILES[kind][name])
    with pytest.raises(FormatError) as caught:
        EXERCISES[kind](path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory limits are set the way Linux has them")
@pytest.mark.parametrize("kind", list(FILES))
def test_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    tests = str(Path(cases.__file__).parent)
    command = [sys.executable, "-c", _LIMITED, tests, kind, str(tmp_path / "hostile")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("big-endian", UnsupportedFormatError), ("version 1", UnsupportedFormatError),
        ("block type 99", UnsupportedFormatError), ("value type 13", UnsupportedFormatError),
        ("array of arrays", UnsupportedFormatError),
        (f"{cases.HUGE} tensors", LimitError), ("5 dimensions", LimitError),
        ("long name", LimitError), (f"string of {cases.BIG} bytes", LimitError),
    ],
)  # fmt: skip
def test_kind_of_error(tmp_path: Path, name: str, error: type[KvantError]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(cases.GGUF[name])
    with pytest.raises(error):
        read_gguf(path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    for exercise in EXERCISES.values():
        for path in (tmp_path, tmp_path / "gone", Path("/dev/null")):
            with pytest.raises(FormatError, match="is not a file"):
                exercise(path)


VALID = {
    "gguf": raw.small_gguf(),
    "safetensors": raw.safetensors(
        {"__metadata__": {"a": "b"}, "t": raw.entry("F32", [2, 2], 0, 16), "u": raw.entry("BF16", [3], 16, 22)},
        bytes(range(22)),
    ),
}


@pytest.mark.parametrize("kind", list(VALID))
def test_every_byte_changed(tmp_path: Path, kind: str) -> None:
    path, valid = tmp_path / "m", VALID[kind]
    path.write_bytes(valid)
    EXERCISES[kind](path)
    refused = 0
    for index, byte in enumerate(valid):
        for other in {0xFF, byte ^ 1, byte ^ 0x80} - {byte}:
            path.write_bytes(valid[:index] + bytes([other]) + valid[index + 1 :])
            try:
                EXERCISES[kind](path)
            except KvantError:
                refused += 1
    assert refused > len(valid)


@pytest.mark.parametrize("kind", list(VALID))
def test_every_length(tmp_path: Path, kind: str) -> None:
    path, valid = tmp_path / "m", VALID[kind]
    needed = len(valid) - (26 if kind == "gguf" else 0)  # padding behind the last tensor may be missing
    for length in range(needed):
        path.write_bytes(valid[:length])
        with pytest.raises(KvantError):
            EXERCISES[kind](path)
