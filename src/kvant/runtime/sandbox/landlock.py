"""Landlock: files, TCP ports and signals that a Linux process takes from itself, without any privilege.

Source: linux/include/uapi/linux/landlock.h; Documentation/userspace-api/landlock.rst.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every processor
VERSION, PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << n for n in range(6))
MAKE_DIR, MAKE_REG, MAKE_SOCK = 1 << 7, 1 << 8, 1 << 9
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FIRST = (1 << 13) - 1
"""The rights of the first version: executing, reading, writing, removing, and making every kind of file."""

READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
"""Without making links, devices and programs: a link in a directory of its owner's could lead its owner astray."""

ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
BIND_AND_CONNECT = 0b11
SCOPES = 0b11
"""Abstract Unix sockets and signals stay within the domain."""


def version(libc: ctypes.CDLL) -> int:
    """Return the version of the kernel's interface; 0 where there is none."""
    found: int = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)
    return max(0, found)


def handled(version: int) -> tuple[int, int, int]:
    """Return the rights over files, over TCP ports and across domains that a version can take away."""
    files = _FIRST | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    return (
        files | (IOCTL_DEV if version >= 5 else 0),
        BIND_AND_CONNECT if version >= 4 else 0,
        SCOPES if version >= 6 else 0,
    )


def restrict(libc: ctypes.CDLL, version: int, grants: Iterable[tuple[str, int]]) -> bool:
    """Give up, for this thread and all it will start, every file but those granted, TCP, and signals to others.

    Args:
        libc: The C library; `PR_SET_NO_NEW_PRIVS` must be set.
        version: As `version` says.
        grants: Paths with the rights beneath them; one that is not there is left out.
    """
    files, ports, scopes = handled(version)
    words = (files, ports, scopes)[: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"={len(words)}Q", *words)
    ruleset: int = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path, rights in grants:
            _add(libc, ruleset, path, rights & files)
        done: int = libc.syscall(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return done == 0


def _add(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= ON_FILES
        libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)
