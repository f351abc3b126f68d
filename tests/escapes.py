"""A hostile engine: everything it could try against its owner and its user's files, each tried once.

`python escapes.py owner JSON` plays an owner with a secret in memory, files and listeners, starts `python escapes.py
child` and says what became of them. The child confines itself with some of the walls, tries, and says what was refused.
It needs nothing but the standard library and the folder that holds the package `sandbox`.
"""

import ctypes
import errno
import fcntl
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECRET = b"a secret of the owner's"
PTRACE_SEIZE, CLONE_NEWUSER, F_SETOWN = 0x4206, 0x10000000, 8
NUMBERS = {
    "x86_64": {"unshare": 272, "pidfd_open": 434, "pidfd_getfd": 438, "shmget": 29, "inotify_init1": 294},
    "aarch64": {"unshare": 97, "pidfd_open": 434, "pidfd_getfd": 438, "shmget": 194, "inotify_init1": 26},
}


def make_target(folder: Path) -> dict[str, Any]:
    """Return what is attacked, of which an owner has to hold the listeners open."""
    (folder / "keys.json").write_text("of the owner's")
    (folder / "other").write_text("x")
    listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    listeners[1].bind(str(folder / "door"))
    listeners[2].bind(f"\0kvant-escapes-{os.getpid()}")
    for listener in listeners[1:]:
        listener.listen()
    buffer = ctypes.create_string_buffer(SECRET)
    return {
        "folder": str(folder), "owner": os.getpid(), "port": listeners[0].getsockname()[1], "buffer": buffer,
        "address": ctypes.addressof(buffer), "listeners": listeners,
    }  # fmt: skip


def is_intact(target: dict[str, Any]) -> bool:
    """Whether an owner's secret and its files are as they were."""
    folder = Path(target["folder"])
    return (
        target["buffer"].value == SECRET
        and (folder / "keys.json").read_text() == "of the owner's"
        and sorted(path.name for path in folder.iterdir()) == ["door", "keys.json", "other"]
        and (folder / "keys.json").stat().st_mode & 0o777 != 0o777
    )


def sendable(target: dict[str, Any]) -> dict[str, Any]:
    """Return what a child has to be told."""
    return {key: value for key, value in target.items() if key not in ("buffer", "listeners")}


def attempts(target: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Return all attempts but to run a program, which would end the rest."""
    return {**on_files(Path(target["folder"])), **on_owner(target["owner"], target["address"]), **on_others(target)}


def on_files(folder: Path) -> dict[str, Callable[[], object]]:
    """Attempts on files of its owner's user."""
    keys = folder / "keys.json"
    return {
        "read a file": keys.read_text,
        "list a directory": lambda: list(folder.iterdir()),
        "write a file": lambda: (folder / "other").write_text("y"),
        "make a file": lambda: (folder / "made").write_text("y"),
        "make a directory": (folder / "directory").mkdir,
        "truncate a file": lambda: os.truncate(folder / "other", 0),
        "truncate by opening": lambda: os.close(os.open(folder / "other", os.O_RDONLY | os.O_TRUNC)),
        "change a mode": lambda: keys.chmod(0o777),
        "change times": lambda: os.utime(keys, (0, 0)),
        "hard link": lambda: os.link(keys, folder / "linked"),
        "symbolic link": lambda: (folder / "symbolic").symlink_to(keys),
        "connect to a socket file": lambda: socket.socket(socket.AF_UNIX).connect(str(folder / "door")),
        "delete a file": (folder / "door").unlink,
        "replace a file": lambda: (folder / "other").replace(keys),
    }


def on_owner(owner: int, address: int) -> dict[str, Callable[[], object]]:
    """Attempts on the process that started it."""
    libc = ctypes.CDLL(None, use_errno=True)

    def memory(flags: int) -> None:
        descriptor = os.open(f"/proc/{owner}/mem", flags)
        os.lseek(descriptor, address, os.SEEK_SET)
        if flags == os.O_RDONLY:
            os.read(descriptor, 4)
        else:
            os.write(descriptor, b"OVER")

    def write_by_process() -> None:
        word = ctypes.create_string_buffer(b"OVER")
        here = (ctypes.c_void_p * 2)(ctypes.addressof(word), 4)
        there = (ctypes.c_void_p * 2)(address, 4)
        if libc.process_vm_writev(owner, here, 1, there, 1, 0) < 0:
            raise OSError(ctypes.get_errno(), "process_vm_writev")

    def trace() -> None:
        if libc.ptrace(PTRACE_SEIZE, owner, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def signal_by_pipe() -> None:
        end, _ = os.pipe()
        fcntl.fcntl(end, F_SETOWN, owner)

    return {
        "read the owner's memory": lambda: memory(os.O_RDONLY),
        "write the owner's memory": lambda: memory(os.O_RDWR),
        "write memory by process": write_by_process,
        "read the owner's environment": lambda: Path(f"/proc/{owner}/environ").read_bytes(),
        "trace the owner": trace,
        "take a descriptor": lambda: call("pidfd_getfd", call("pidfd_open", owner, 0), 1, 0),
        "signal the owner": lambda: os.kill(owner, 0),
        "signal by a pipe": signal_by_pipe,
        "limit the owner": lambda: resource.prlimit(owner, resource.RLIMIT_CORE, (0, 0)),
        "slow the owner": lambda: os.setpriority(os.PRIO_PROCESS, owner, 1),
    }


def on_others(target: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """Attempts on the network, the kernel and other processes."""

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def listen(family: int, place: Any) -> None:
        door = socket.socket(family)
        door.bind(place)
        door.listen()

    def connect(name: str) -> None:
        socket.socket(socket.AF_UNIX).connect(name)

    return {
        "fork": fork,
        "connect by TCP": lambda: socket.create_connection(("127.0.0.1", target["port"]), 5),
        "listen on TCP": lambda: listen(socket.AF_INET, ("0.0.0.0", 0)),
        "send datagrams": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
        "connect by abstract name": lambda: connect(f"\0kvant-escapes-{target['owner']}"),
        "listen by abstract name": lambda: listen(socket.AF_UNIX, f"\0kvant-{os.getpid()}"),
        "share memory by number": lambda: call("shmget", 0, 4096, 0o600),
        "watch files": lambda: call("inotify_init1", 0),
        "new namespaces": lambda: call("unshare", CLONE_NEWUSER),
    }


def call(name: str, *arguments: Any) -> int:
    """Make a system call by its number."""
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.syscall(NUMBERS[os.uname().machine][name], *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), name)
    return done


def tried(target: dict[str, Any]) -> dict[str, int]:
    """Try everything; return the error number of each attempt, 0 where it was allowed."""
    found = {}
    for name, attempt in attempts(target).items():
        try:
            attempt()
        except OSError as error:
            found[name] = error.errno or errno.EIO
        else:
            found[name] = 0
    return found


def try_program() -> int:
    """Become /bin/true, or return the error number."""
    try:
        os.execv("/bin/true", ["true"])
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def child(request: dict[str, Any]) -> None:
    """Confine this process without some of the walls, try, and print what was refused."""
    sys.path.insert(0, request["runtime"])
    sandbox = importlib.import_module("sandbox.confine")
    sys.path.remove(request["runtime"])
    without = request["without"]
    if "landlock" in without:
        sandbox.landlock.version = lambda _: 0
    elif request["landlock"]:
        sandbox.landlock.version = lambda _: request["landlock"]
    if "seccomp" in without:
        sandbox.seccomp.install = lambda *_, **__: False
    if "user-namespace" in without:
        sandbox.namespaces.enter_own = lambda _: ()
    if "capabilities" in without:
        sandbox.namespaces.drop_capabilities = lambda *_, **__: False
    held = sandbox.confine(sandbox.Policy.from_json(request["policy"]))
    found = tried(request["target"])
    say(json.dumps({"held": held, "found": found}))
    say(str(try_program()))


def owner(request: dict[str, Any]) -> None:
    """Be attacked by a child, and print what it reports and what is left."""
    with tempfile.TemporaryDirectory() as name:
        target = make_target(Path(name))
        if request["shield"]:
            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
        asked = json.dumps({**request, "target": sendable(target)})
        done = subprocess.run(
            [sys.executable, "-P", __file__, "child", asked], capture_output=True, text=True, check=False, timeout=60
        )
        lines = done.stdout.splitlines()
        report: dict[str, Any] = json.loads(lines[0]) if lines else {"error": done.stderr}
        program = int(lines[1]) if len(lines) > 1 else 0
        report.setdefault("found", {})["run a program"] = program
        say(json.dumps({**report, "intact": is_intact(target)}))


if __name__ == "__main__":
    {"owner": owner, "child": child}[sys.argv[1]](json.loads(sys.argv[2]))
