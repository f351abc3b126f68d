import ast
import os
import re
import sys
import threading
from pathlib import Path

import pytest

import kvant
from kvant.runtime.sandbox import landlock, namespaces, seccomp, spawn
from kvant.runtime.sandbox.policy import Policy


def test_a_policy_is_read_as_it_was_written() -> None:
    odd = os.fsdecode(b"/models/\xff \xc3\xa9")
    policy = Policy(reads=(odd,), sockets=("/s",), open_files=3, parent=7)
    assert policy.to_json().isascii()
    assert Policy.from_json(policy.to_json()) == policy


def test_the_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "KVANT_API_KEY", "LD_PRELOAD", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = spawn.environment(HOME="/nowhere")
    assert "secret" not in found.values()
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["HOME"] == "/nowhere"


def test_only_the_main_thread_owns() -> None:
    owners: list[int] = []
    thread = threading.Thread(target=lambda: owners.append(spawn.owner()))
    thread.start()
    thread.join()
    assert owners == [0]
    assert spawn.owner() == os.getpid()


STARTERS = {"Popen", "run", "create_subprocess_exec", "create_subprocess_shell", "execv", "system", "popen", "fork"}
# What is started otherwise than confined, and why that is no engine's process.
OTHERS = {
    "devices/detect.py": "asks programs of the system, such as nvidia-smi",
    "recipes/targets/onnx/exporters.py": "asks a Python which packages it has",
    "runtime/converter/environment.py": "asks a Python which packages it has, and has pip install them",
    "runtime/sandbox/spawn.py": "is the place that starts confined ones",
    "runtime/server/workers.py": "confines itself when it knows its model: test_hostile_engines.py",
}


def test_no_process_is_started_but_confined() -> None:
    source = Path(kvant.__file__).parent
    bare: dict[str, int] = {}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "subprocess" in text or "import os" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTERS:
                owner = ast.unparse(node.func.value)
                if owner in ("subprocess", "asyncio", "os") and "spawn.command(" not in ast.unparse(node):
                    name = path.relative_to(source).as_posix()
                    bare[name] = bare.get(name, 0) + 1
    twice = {"devices/detect.py", "runtime/converter/environment.py"}
    assert bare == {name: 2 if name in twice else 1 for name in OTHERS}


def test_what_is_covered() -> None:
    roots = (Path("/models/a"), Path("/b.gguf"))
    assert spawn.covers(roots, Path("/models/a/x/y.gguf"))
    assert spawn.covers(roots, Path("/b.gguf"))
    assert not spawn.covers(roots, Path("/models/ab"))


def test_what_holds_is_told() -> None:
    held = spawn.probe()
    assert "rlimits" in held
    assert spawn.missing(held) == tuple(
        wall for wall in spawn.WALLS if not any(name == wall or name.startswith(f"{wall}-") for name in held)
    )
    assert spawn.missing(("landlock-7", "seccomp")) == (
        "rlimits", "user-namespace", "net-namespace", "ipc-namespace", "capabilities", "pdeathsig", "no_new_privs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no such wall')", r"ended with status 1 \(no such wall\)"),
        ("import time; time.sleep(1e6)", r"took longer than 0\.2 s"),
        (None, "cannot be started"),
    ],
)
def test_a_try_that_fails_says_how_and_that_nothing_is_known(
    code: str | None, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words_of_it = ["/nowhere/python"] if code is None else [sys.executable, "-c", code]
    monkeypatch.setattr(spawn, "command", lambda *_, **__: words_of_it)
    monkeypatch.setattr(spawn, "PROBE_S", 60 if "took" not in words else 0.2)
    assert spawn.probe() == ()
    assert re.search(words, caplog.text)


@pytest.mark.parametrize(
    ("allowed", "entered"),
    [
        (namespaces.NEWUSER | namespaces.NEWNET | namespaces.NEWIPC, ("user", "net", "ipc")),
        (namespaces.NEWUSER | namespaces.NEWIPC, ("user", "ipc")),
        (namespaces.NEWUSER, ("user",)),
        (namespaces.NEWNET, ()),
    ],
)
def test_namespaces_that_were_entered_are_named_and_no_others(
    allowed: int, entered: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kernel:
        def unshare(self, kinds: int) -> int:
            return -1 if kinds & ~allowed else 0

    monkeypatch.setattr(Path, "write_text", lambda *_: None)
    held = namespaces.enter_own(Kernel())  # type: ignore[arg-type]
    assert held == tuple(f"{kind}-namespace" for kind in entered)
    lost = {f"{kind}-namespace" for kind in ("user", "net", "ipc")} - set(held)
    assert lost <= set(spawn.missing(held))
    assert not set(held) & set(spawn.missing(held))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="root alone reads what is not its own")
def test_root_keeps_what_it_needs_to_read_a_users_model(tmp_path: Path) -> None:
    model = tmp_path / "private" / "model.gguf"
    model.parent.mkdir()
    model.write_text("weights")
    assert not namespaces.needs_search([str(model)])
    os.chown(model.parent, 1234, 1234)
    model.parent.chmod(0o700)
    assert namespaces.needs_search([str(model)])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is nothing that could be missed")
def test_a_kernel_without_walls_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spawn.warn_if_free.cache_clear()
    monkeypatch.setattr(landlock, "version", lambda _: 0)
    spawn.command(Policy())
    assert not caplog.records
    spawn.warn_if_free.cache_clear()
    monkeypatch.setattr(seccomp, "available", lambda: False)
    for _ in range(2):
        spawn.command(Policy())
    assert [record.getMessage()[:47] for record in caplog.records] == [
        "engines: this kernel has neither Landlock nor s"
    ]
    spawn.warn_if_free.cache_clear()
