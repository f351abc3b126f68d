"""What a confined process cannot do, tried by one, wall by wall; what a kernel lacks leaves what the others hold."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import escapes
from kvant.runtime.sandbox import landlock, spawn
from kvant.runtime.sandbox.policy import Policy

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have limits of resources alone"),
]

RUNTIME = Path(landlock.__file__).parents[1]
OPTIONAL = ("landlock", "seccomp", "user-namespace", "capabilities")
NOBODY = 65534

FILES = {"read a file", "list a directory"}
CHANGES = {
    "write a file", "make a file", "make a directory", "truncate by opening", "hard link", "symbolic link",
    "delete a file", "replace a file",
}  # fmt: skip
MEMORY = {
    "read the owner's memory", "write the owner's memory", "write memory by process", "read the owner's environment",
    "trace the owner", "take a descriptor",
}  # fmt: skip
TCP = {"connect by TCP", "listen on TCP"}
EVERYTHING = {*escapes.attempts({"folder": "/", "owner": 0, "address": 0, "port": 0}), "run a program"}

# What each wall refuses alone.
LANDLOCK = {
    1: FILES | CHANGES | MEMORY | {"run a program"},
    3: {"truncate a file"},
    4: TCP,
    6: {"signal the owner", "connect by abstract name"},
}
NETWORK = {"connect by TCP", "send datagrams", "connect by abstract name"}
SECCOMP = EVERYTHING - FILES - {"read the owner's memory", "read the owner's environment"}
SHIELD = MEMORY  # of an owner without privilege, or against a child without
PLAIN = {"write a file", "replace a file", "read a file", "fork", "run a program", "signal the owner", "change a mode"}


def attacked(
    *, without: tuple[str, ...] = (), version: int = 0, shield: bool = False, user: int | None = None
) -> dict[str, Any]:  # fmt: skip
    """Have an owner attacked by a child of its own; see `escapes.owner`."""
    policy = Policy().to_json()
    request = {
        "runtime": str(RUNTIME), "without": without, "landlock": version, "shield": shield, "policy": policy,
    }  # fmt: skip
    as_user: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(
        [sys.executable if user is None else "/usr/bin/python3", "-P", escapes.__file__, "owner", json.dumps(request)],
        capture_output=True, text=True, check=True, timeout=120, env={"PATH": "/usr/bin:/bin"}, **as_user,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    assert "error" not in found, found["error"]
    return found


def refused(report: dict[str, Any]) -> set[str]:
    return {name for name, code in report["found"].items() if code}


def expected(held: list[str], *, shielded: bool = False) -> set[str]:
    """What the walls that hold refuse between them."""
    names: set[str] = set()
    for wall in held:
        if wall.startswith("landlock-"):
            names |= set().union(*(what for since, what in LANDLOCK.items() if since <= int(wall.split("-")[1])))
        names |= {"user-namespace": MEMORY, "net-namespace": NETWORK, "seccomp": SECCOMP}.get(wall, set())
    return names | (SHIELD if shielded else set())


def test_without_walls_every_attempt_is_one() -> None:
    report = attacked(without=OPTIONAL)
    assert refused(report) & PLAIN == set()
    assert not report["intact"]


def test_nothing_gets_through_all_walls() -> None:
    report = attacked(shield=True)
    assert {"rlimits", "no_new_privs"} <= set(report["held"])
    assert refused(report) >= expected(report["held"])
    if {"landlock", "seccomp"}.isdisjoint(spawn.missing(report["held"])):
        assert refused(report) == EVERYTHING
        assert report["intact"]


@pytest.mark.parametrize("version", [1, 3, 4, 6, 0])
def test_landlock_alone_by_the_version_of_the_kernel(version: int) -> None:
    others = tuple(wall for wall in OPTIONAL if wall != "landlock")
    report = attacked(without=others, version=version)
    assert refused(report) >= expected(report["held"])
    if any(wall.startswith("landlock") for wall in report["held"]):
        assert refused(report) >= FILES | CHANGES | MEMORY


@pytest.mark.parametrize("wall", ["seccomp", "user-namespace"])
def test_one_wall_alone(wall: str) -> None:
    report = attacked(without=tuple(other for other in OPTIONAL if other != wall))
    assert refused(report) >= expected(report["held"])
    if report["held"][-1] == "seccomp":  # no file is changed, whatever else the kernel lacks
        assert report["intact"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the tests above are those of a plain user")
def test_a_plain_user_without_any_other_wall_is_shielded() -> None:
    runs = subprocess.run(
        ["/usr/bin/python3", "-P", escapes.__file__, "-"], user=NOBODY, capture_output=True, check=False
    )
    if b"KeyError" not in runs.stderr:
        pytest.skip("nobody can run a Python here")
    bare, shielded, whole = (
        attacked(without=OPTIONAL, user=NOBODY), attacked(without=OPTIONAL, shield=True, user=NOBODY),
        attacked(shield=True, user=NOBODY),
    )  # fmt: skip
    assert refused(bare) & PLAIN == set()
    assert refused(shielded) >= SHIELD
    assert refused(whole) >= expected(whole["held"], shielded=True)


def test_a_directory_to_write_in_has_no_links_and_no_way_out(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    folder, outside = tmp_path / "out", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("mine")
    script.write_text(
        f"""
import json, os
from pathlib import Path
folder, outside = Path({str(folder)!r}), Path({str(outside)!r})
def attempt(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0
def nested():
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_text("a")
    os.replace(folder / "sub" / "a", folder / "b")
print(json.dumps([os.environ["KVANT_CONFINED"], attempt(nested),
    attempt(lambda: os.symlink(outside, folder / "link")), attempt(lambda: os.link(outside, folder / "hard")),
    attempt(lambda: outside.write_text("theirs")), attempt(lambda: (folder / "big").write_bytes(bytes(1 << 17)))]))
"""
    )
    policy = Policy(reads=(str(script),), writes=(str(folder),), file_bytes=1 << 16)
    done = subprocess.run(spawn.command(policy, str(script)), capture_output=True, text=True, check=True, timeout=60)
    held, allowed, symbolic, hard, out, big = json.loads(done.stdout)
    assert allowed == 0
    assert (folder / "b").read_text() == "a"
    if "landlock" in held:
        assert out == errno.EACCES
        assert outside.read_text() == "mine"
    if "landlock" in held or "seccomp" in held:
        assert symbolic in (errno.EACCES, errno.EPERM)
        assert hard in (errno.EACCES, errno.EPERM, errno.EXDEV)
    assert big == errno.EFBIG


def test_a_directory_of_links_is_read_as_the_files_they_lead_to(tmp_path: Path) -> None:
    blobs, model = tmp_path / "blobs", tmp_path / "snapshots" / "model"
    blobs.mkdir()
    model.mkdir(parents=True)
    (blobs / "1").write_text("weights")
    (blobs / "2").write_text("another model's")
    (model / "weights").symlink_to("../../blobs/1")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "print(Path(sys.argv[1]).read_text())\nprint(Path(sys.argv[2]).read_text())\n"
    )
    policy = Policy(reads=(str(script), str(model)))
    asked = spawn.command(policy, str(script), str(model / "weights"), str(blobs / "2"))
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines()[0] == "weights"
    assert ("PermissionError" in done.stderr) == ("landlock" not in spawn.missing(spawn.probe()))


def test_a_process_whose_owner_has_gone_ends_at_once() -> None:
    done = subprocess.run(spawn.command(Policy(parent=1 << 22)), check=False, timeout=60)
    assert done.returncode == 1


def test_threads_that_run_already_are_not_left_free() -> None:
    code = (
        "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "from kvant.runtime.sandbox.confine import confine, Policy; confine(Policy())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "2 threads run" in done.stderr
