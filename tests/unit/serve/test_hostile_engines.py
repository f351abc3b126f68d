"""Engines that were taken over, each started as kvant starts it: they attack their owner, this process."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import escapes
from kvant.errors import KvantError, UnsupportedModelError, WorkerError
from kvant.recipes.int8.search import Tools
from kvant.runtime.bounded import Bounded, Refused, Render
from kvant.runtime.mlx import MLXProcess
from kvant.runtime.ort_process import OrtProcess
from kvant.runtime.process import EngineProcess
from kvant.runtime.sandbox import spawn
from kvant.runtime.server.start import Start
from kvant.runtime.server.workers import start_worker
from kvant.runtime.template import render
from kvant.runtime.tokenizers import by_worker

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
        child.send(json.dumps(escapes.sendable(target)).encode() + b"\n", process._timeout_s)
        report = json.loads(child.reader(process._timeout_s).rest(1 << 20, line=True) or b"")
    # Modes and times are said to be set where files are copied, and are not: see `is_intact`.
    check(report["found"], tuple(report["held"]), target, {"change a mode", "change times"} if writes else set())


def hostile(folder: Path, module: str, then: str, target: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module where a child imports it, which tries everything and tells what was `allowed`."""
    place = folder / "library" / Path(*module.split("."))
    place.parent.mkdir(parents=True)
    if "." in module:
        (place.parent / "__init__.py").write_text("")
    place.with_suffix(".py").write_text(
        "import json, os, sys\nimport escapes\n"
        f"found = escapes.tried(json.loads({json.dumps(escapes.sendable(target))!r}))\n"
        "allowed = 'allowed: ' + json.dumps([name for name, code in found.items() if not code])\n" + then
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'library'}:{HERE}")


def told(error: BaseException) -> list[str]:
    assert "allowed: " in str(error), str(error)
    allowed: list[str] = json.loads(str(error).partition("allowed: ")[2].partition("]")[0] + "]")
    return allowed


def by_mlx(folder: Path) -> None:
    with MLXProcess() as process:
        process.open(folder)


def by_jinja(_: Path) -> None:
    render("{{ 1 }}", [])


def by_minijinja(_: Path) -> None:
    bounded = Bounded()
    try:
        reply = bounded.ask(Render("{{ 1 }}", {}), "template")
        assert isinstance(reply, Refused)
        raise UnsupportedModelError(reply.reason)
    finally:
        bounded.close()


SAY_AS_JSON = "print(json.dumps({'error': allowed}), flush=True)\nsys.stdin.read()\n"
SAY = "sys.stderr.write(allowed + '\\n')\nsys.stderr.flush()\nos._exit(3)\n"
REFUSE = """
class TemplateError(Exception):
    pass
class Environment:
    def __init__(self, **_):
        pass
    def render_template(self, *_, **__):
        raise TemplateError(allowed)
"""


@pytest.mark.parametrize(
    ("module", "then", "ask"),
    [
        ("mlx.core", SAY_AS_JSON, by_mlx),
        ("onnxruntime_genai", SAY, lambda folder: by_worker("genai", folder, ["x"], [])),
        ("jinja2", SAY, by_jinja),
        ("minijinja", REFUSE, by_minijinja),
    ],
    ids=["mlx", "genai", "jinja", "minijinja"],
)
def test_what_reads_models_tokenizers_and_templates(
    module: str, then: str, ask: Callable[[Path], object], target: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hostile(tmp_path, module, then, target, monkeypatch)
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(KvantError) as caught:
        ask(model)
    allowed, missing = set(told(caught.value)), spawn.missing(spawn.probe())
    assert "landlock" in missing or allowed.isdisjoint(BY_LANDLOCK)
    assert "seccomp" in missing or allowed.isdisjoint(BY_SECCOMP)
    if {"landlock", "seccomp"}.isdisjoint(missing):
        assert not allowed
        assert escapes.is_intact(target)


def serve(model: Path) -> None:
    """Have a model served."""
    model.write_bytes(b"GGUF")
    start = Start(path=str(model), name="m", api_key="", context=256, parallel=1, threads=1, http_threads=4)
    asyncio.run(start_worker(start, timeout_s=60))


def test_an_engine_that_serves(target: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile(tmp_path, "xllamacpp", SAY.replace("allowed +", "'kvant-engine: ' + allowed +"), target, monkeypatch)
    with pytest.raises(WorkerError) as caught:
        serve(tmp_path / "model.gguf")
    allowed, missing = set(told(caught.value)), spawn.missing(spawn.probe())
    assert "landlock" in missing or allowed.isdisjoint(BY_LANDLOCK)
    assert "seccomp" in missing or allowed.isdisjoint(BY_SECCOMP)
    if {"landlock", "seccomp"}.isdisjoint(missing):
        assert allowed == {"listen by abstract name"}  # in a network of its own, where there is one
        assert escapes.is_intact(target)


def test_an_engine_that_leads_its_gateway_to_another_socket(
    target: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = f"{target['folder']}/door"
    answer = json.dumps({"address": door}).encode() + b"\n"
    say = (
        "import contextlib\n"
        "for descriptor in range(3, 9):\n"
        "    with contextlib.suppress(OSError):\n"
        f"        os.write(descriptor, {answer!r})\n"
        "sys.stdin.read()\n"
    )
    hostile(tmp_path, "xllamacpp", say, target, monkeypatch)
    with pytest.raises(WorkerError, match=r"says it listens on '/.*', which is not its own"):
        serve(tmp_path / "model.gguf")
