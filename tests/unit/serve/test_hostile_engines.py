"""Engines that were taken over, each started as kvant starts it: they attack their owner, this process."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import escapes
from kvant.errors import WorkerError
from kvant.recipes.int8.search import Tools
from kvant.runtime.ort_process import OrtProcess
from kvant.runtime.process import EngineProcess
from kvant.runtime.sandbox import spawn
from kvant.serve.engines.base import Start
from kvant.serve.workers import WorkerProcess, start_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have limits of resources alone")

HERE = Path(escapes.__file__).parent
# What a kernel without Landlock or without seccomp still refuses; both together refuse all.
BY_LANDLOCK = {"read a file", "write a file", "replace a file", "write the owner's memory", "read the owner's memory"}
BY_SECCOMP = {
    "write a file",
    "replace a file",
    "fork",
    "signal the owner",
    "connect by TCP",
    "write the owner's memory",
}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[dict[str, Any]]:
    folder = tmp_path / "home"
    folder.mkdir()
    found = escapes.make_target(folder)
    yield found
    for listener in found["listeners"]:
        listener.close()


def check(found: dict[str, int], held: tuple[str, ...], target: dict[str, Any], allowed: set[str]) -> None:
    refused = {name for name, code in found.items() if code}
    missing = spawn.missing(held)
    assert "landlock" in missing or refused >= BY_LANDLOCK
    assert "seccomp" in missing or refused >= BY_SECCOMP
    if {"landlock", "seccomp"}.isdisjoint(missing):
        assert set(found) - refused == allowed
        assert escapes.is_intact(target)


@pytest.mark.parametrize("engine", [EngineProcess, OrtProcess, Tools])
def test_an_engine_that_measures(
    engine: type[EngineProcess], target: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr(engine, "MODULE", "hostile_engine")
    monkeypatch.setattr(engine, "files", staticmethod(lambda path: (path,)))
    writes = (tmp_path / "out",) if engine is Tools else ()
    for path in (tmp_path / "out", tmp_path / "model"):
        path.mkdir()
    with engine(writes=writes) as process:
        process._start(tmp_path / "model")
        child = process._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(escapes.sendable(target)).encode() + b"\n")
        child.stdin.flush()
        report = json.loads(child.stdout.readline())
    # Modes and times are said to be set where files are copied, and are not: see `is_intact`.
    check(report["found"], tuple(report["held"]), target, {"change a mode", "change times"} if writes else set())


def test_an_engine_that_serves(target: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "xllamacpp.py").write_text(
        "import json, os, sys\nimport escapes\n"
        f"for name, code in escapes.tried(json.loads({json.dumps(escapes.sendable(target))!r})).items():\n"
        "    print(f'tried|{name}|{code}', file=sys.stderr)\n"
        "os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{library}:{HERE}")
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    start = Start(path=str(model), name="m", api_key="", context=256, parallel=1, threads=1, http_threads=4)
    started: list[WorkerProcess] = []
    with pytest.raises(WorkerError):
        asyncio.run(start_worker(start, timeout_s=60, spawned=started.append))
    lines = [line.split("|") for line in started[0].log if line.startswith("tried|")]
    found = {name: int(code) for _, name, code in lines}
    # A socket in its own network: nobody else sees the name.
    check(found, spawn.probe(), target, {"listen by abstract name"})
