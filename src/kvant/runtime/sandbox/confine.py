"""Take from this process what an engine does not need, for ever.

What holds without any privilege, by system:
    everywhere   no core dump, bounded open files, file sizes and processor time (POSIX)
    Linux        bounded memory; ends with its owner; no new privileges; and as far as the kernel offers them:
                 namespaces of its own, no capabilities, no file but its model and what runs it (Landlock), a filter of
                 system calls (seccomp)
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from . import landlock, namespaces, seccomp
from .policy import Policy

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
MAX_LINKS, MAX_DEPTH = 10_000, 4

LIBRARIES = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64",
    "/usr/share/zoneinfo", "/usr/share/locale", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/ld.so.preload",
    "/etc/localtime", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies", "/etc/os-release",
)  # fmt: skip
"""What programs are made of on one system or another; nothing of it is anybody's own."""

PARTS = ("bin", "etc", "lib", "lib64", "pyvenv.cfg", "share", "ssl")
"""What a Python needs of where it is installed."""

MACHINE = (
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/sys/vm",
    "/proc/sys/kernel/osrelease", "/sys/devices/system", "/sys/kernel/mm/transparent_hugepage", "/dev/urandom",
    "/dev/random", "/dev/zero",
)  # fmt: skip
"""What says how many cores and how much memory there is; and chance."""

_kept_open: "list[int]" = []


def confine(policy: Policy) -> "tuple[str, ...]":
    """Give up all that a policy does not name; call it while the process has one thread, before it reads a model.

    Returns:
        Names of what now holds, of `rlimits`, `user-namespace`, `net-namespace`, `ipc-namespace`, `capabilities`,
        `landlock-N` (the version of the kernel's interface), `pdeathsig`, `no_new_privs` and `seccomp`.
    """
    held = ["rlimits"] if _limit_resources(policy) else []
    if sys.platform == "linux":
        held += _confine_linux(policy)
    return tuple(held)


def _confine_linux(policy: Policy) -> Iterator[str]:
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads run: what they do could not be taken from the others"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        yield "no_new_privs"
    grants = list(_grants(policy))  # read before anything is taken away
    searches = namespaces.needs_search([*policy.reads, *policy.writes, *_programs()])
    if not searches:
        yield from namespaces.enter_own(libc)
    if namespaces.drop_capabilities(libc, keep_search=searches):
        yield "capabilities"
    version = landlock.version(libc)
    if version and landlock.restrict(libc, version, grants):
        yield f"landlock-{version}"
    if policy.parent:
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            yield "pdeathsig"
        if os.getppid() != policy.parent:  # the owner ended before it was asked for
            os._exit(1)
    if seccomp.install(libc, listens=bool(policy.sockets), writes=bool(policy.writes)):
        yield "seccomp"


def _limit_resources(policy: Policy) -> bool:
    if sys.platform == "win32":
        return False
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, policy.open_files)
    if policy.file_bytes:
        _lower(resource.RLIMIT_FSIZE, policy.file_bytes)
    if policy.cpu_seconds:
        _lower(resource.RLIMIT_CPU, policy.cpu_seconds)
    if policy.address_space_bytes and sys.platform == "linux":
        _lower(resource.RLIMIT_AS, policy.address_space_bytes)
    return True


def _lower(limit: int, value: int) -> None:
    """Set a limit, or leave the one there is where it is lower already."""
    import resource

    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(limit, (value, value))


def _grants(policy: Policy) -> "Iterator[tuple[str, int]]":
    """Paths and what may be done beneath them."""
    for path in (*LIBRARIES, *MACHINE, *_programs()):
        yield path, landlock.READ
    yield "/dev/null", landlock.READ | landlock.WRITE_FILE
    yield _own_entry(), landlock.READ
    for path in policy.reads:
        for place in (path, *_targets(path)):
            yield place, landlock.READ
    for path in policy.writes:
        yield path, landlock.WRITE
    for path in policy.sockets:
        yield path, landlock.MAKE_SOCK


def _programs() -> "Iterator[str]":
    """Where the interpreter and what it imports are; never a directory that holds its user's home."""
    home = Path(os.environ.get("HOME") or "/").resolve()
    installed = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    parts = (Path(prefix, part) for prefix in installed for part in PARTS)
    named = filter(None, [*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(":")])
    for path in (*parts, Path(__file__).resolve().parents[2], *map(Path, named)):
        real = path.resolve()
        if real != home and real not in home.parents:
            yield str(path)


def _own_entry() -> str:
    """This process in /proc, kept open: the kernel forgets what was granted of an entry that nobody holds."""
    path = f"/proc/{os.getpid()}"
    _kept_open.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    return path


def _targets(path: str) -> "Iterator[str]":
    """Files elsewhere that a model's directory consists of by links, as in the hub's cache."""
    seen, depth = 0, len(Path(path).parts)
    for folder, folders, names in os.walk(path):
        for place in (Path(folder, name) for name in names):
            if place.is_symlink() and place.is_file():
                yield str(place)
        seen += len(names)
        if seen > MAX_LINKS:
            return
        if len(Path(folder).parts) - depth >= MAX_DEPTH:
            folders.clear()
