"""A process's own user, network and IPC namespaces, and no capabilities in any.

Source: man 7 capabilities, user_namespaces; linux/include/uapi/linux/{capability,prctl,securebits,sched}.h.
"""

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

NEWUSER, NEWNET, NEWIPC = 0x10000000, 0x40000000, 0x08000000
CAPBSET_DROP, SET_SECUREBITS, CAP_AMBIENT, AMBIENT_CLEAR_ALL = 24, 28, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH, LAST_CAPABILITY = 2, 63
SECURE = 0b11101111
"""No capability by being root, none raised, none kept, all of it locked: every bit but the one that keeps them."""


def enter_own(libc: ctypes.CDLL) -> "tuple[str, ...]":
    """Leave the users, networks and messages of everybody else, as far as that is allowed; return what was left.

    The process keeps its user's and group's numbers. What it may do to files stays as it was, but it has no right any
    more over processes outside, not even over those of its own user.
    """
    user, group = os.geteuid(), os.getegid()
    kinds = {"user-namespace": NEWUSER, "net-namespace": NEWNET, "ipc-namespace": NEWIPC}
    if libc.unshare(NEWUSER | NEWNET | NEWIPC) == 0:
        entered = tuple(kinds)
    else:  # one by one: a limit or the kernel may keep some of them; the first gives the right to the others
        entered = ()
        for name, kind in kinds.items():
            if (entered or kind == NEWUSER) and libc.unshare(kind) == 0:
                entered += (name,)
    if not entered:
        return ()
    with contextlib.suppress(OSError):  # without them files are of "nobody", which changes no right to them
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    return entered


def drop_capabilities(libc: ctypes.CDLL, *, keep_search: bool) -> bool:
    """Give up every capability for ever; return whether none is left.

    Args:
        libc: The C library.
        keep_search: Keep the one to read files of other users, which a model may be of.
    """
    libc.prctl(CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(LAST_CAPABILITY + 1):
        if not (keep_search and capability == CAP_DAC_READ_SEARCH):
            libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(SET_SECUREBITS, SECURE, 0, 0, 0)
    kept = 1 << CAP_DAC_READ_SEARCH if keep_search else 0
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    done: int = libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))
    return done == 0 and not kept


def needs_search(paths: Iterable[str]) -> bool:
    """Whether root could not read one of the paths if it were a user like any other."""
    if os.geteuid() != 0:
        return False
    groups = {os.getegid(), *os.getgroups()}
    for name in paths:
        path = Path(name).resolve()
        for place in (path, *path.parents):
            with contextlib.suppress(OSError):
                found = place.stat()
                shift = 6 if found.st_uid == 0 else 3 if found.st_gid in groups else 0
                wanted = stat.S_IXOTH if place != path else stat.S_IROTH
                if not found.st_mode >> shift & wanted:
                    return True
    return False
