"""A filter of system calls, as classic BPF: what no engine needs fails, whatever the kernel would allow.

Source: linux/include/uapi/linux/{seccomp,filter,audit}.h; numbers: arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping

SET_MODE_FILTER, SPEC_ALLOW = 1, 4
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in struct seccomp_data; little-endian halves of 64-bit arguments.
NUMBER, ARCH, ARGS = 0, 4, 16
LOAD, EQUAL, ABOVE, SET, RETURN, AND = 0x20, 0x15, 0x25, 0x45, 0x06, 0x54
X32_BIT = 0x40000000
LAST_KNOWN = 462  # mseal; what later kernels add is not there

AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF
CLONE_THREAD = 0x00010000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

NOWHERE = -1
# Name: its number on x86-64 and on ARM. In each group, what an engine never does.
_TABLE: Mapping[str, tuple[int, int]] = {
    # other programs, other processes
    "fork": (57, NOWHERE), "vfork": (58, NOWHERE), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    # the network beyond what it listens on
    "connect": (42, 203), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # other users, namespaces, roots, mounts
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setgroups": (116, 159), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "capset": (126, 91), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51), "pivot_root": (155, 41),
    "mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "statmount": (457, 457), "listmount": (458, 458),
    # files of others: their owner, attributes, names; and news of them
    "chown": (92, NOWHERE), "fchown": (93, 55), "lchown": (94, NOWHERE), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "truncate": (76, 45), "link": (86, NOWHERE), "linkat": (265, 37),
    "symlink": (88, NOWHERE), "symlinkat": (266, 36), "mknod": (133, NOWHERE), "mknodat": (259, 33),
    "inotify_init": (253, NOWHERE), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # memory and messages shared by number or name
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    # large and seldom used parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "personality": (135, 92), "modify_ldt": (154, NOWHERE),
    "ioperm": (173, NOWHERE), "iopl": (172, NOWHERE), "syslog": (103, 116), "acct": (163, 89), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "vhangup": (153, 58),
}  # fmt: skip
# Refused only where nothing may be written, so that a kernel without Landlock keeps its files, too.
_CHANGES: Mapping[str, tuple[int, int]] = {
    "creat": (85, NOWHERE), "unlink": (87, NOWHERE), "unlinkat": (263, 35), "rmdir": (84, NOWHERE),
    "mkdir": (83, NOWHERE), "mkdirat": (258, 34), "rename": (82, NOWHERE), "renameat": (264, 38),
    "renameat2": (316, 276),
}  # fmt: skip
# Modes and times: refused, or where files are written, said to be done: copying a file would fail over them.
_MARKS: Mapping[str, tuple[int, int]] = {
    "chmod": (90, NOWHERE), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, NOWHERE),
    "utimes": (235, NOWHERE), "futimesat": (261, NOWHERE), "utimensat": (280, 88),
}  # fmt: skip
# Refused as unknown, so that the C library asks in the old way, whose arguments a filter can see.
_UNSEEN: Mapping[str, tuple[int, int]] = {"clone3": (435, 435), "openat2": (437, 437)}
# Allowed for some arguments.
_SOME: Mapping[str, tuple[int, int]] = {
    "clone": (56, 220), "socket": (41, 198), "sendto": (44, 206), "bind": (49, 200), "listen": (50, 201),
    "open": (2, NOWHERE), "openat": (257, 56), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioctl": (16, 29), "fcntl": (72, 25), "prctl": (157, 167),
}  # fmt: skip
# Signals through descriptors (F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP), key strokes for a terminal
# (TIOCSTI, TIOCLINUX), and outliving the owner (PR_SET_PDEATHSIG).
_COMMANDS = {"fcntl": (1, (8, 10, 15)), "ioctl": (1, (0x8901, 0x8902, 0x5412, 0x541C)), "prctl": (0, (1,))}

MACHINES = {"x86_64": (0xC000003E, 0, 317), "aarch64": (0xC00000B7, 1, 277)}
"""Audit's number of the processor, its column in the tables, and the number of `seccomp` there."""


def available() -> bool:
    """Whether this processor has a table here, and the kernel has filters."""
    return platform.machine() in MACHINES and os.path.exists("/proc/sys/kernel/seccomp/actions_avail")  # noqa: PTH110


def install(libc: ctypes.CDLL, *, listens: bool, writes: bool) -> bool:
    """Install the filter on this thread and all it will start; False where the processor or kernel has none.

    Args:
        libc: The C library; `PR_SET_NO_NEW_PRIVS` must be set.
        listens: Unix sockets may be made and listened on.
        writes: Files may be written, where something else bounds which.
    """
    known = MACHINES.get(platform.machine())
    if known is None:
        return False
    code = program(platform.machine(), own=os.getpid(), listens=listens, writes=writes)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    loaded = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    # Kernels before 5.16 slow a filtered process down against a side channel; this one has no secrets to leak.
    return any(libc.syscall(known[2], SET_MODE_FILTER, flags, ctypes.byref(loaded)) == 0 for flags in (SPEC_ALLOW, 0))


def program(machine: str, *, own: int, listens: bool, writes: bool) -> bytes:
    """Return the filter: another architecture's calls kill, the rest of what is refused fails.

    Args:
        machine: A key of `MACHINES`.
        own: Process id that may be signalled: its own.
        listens: See `install`.
        writes: See `install`.
    """
    arch, column, _ = MACHINES[machine]
    number = {name: row[column] for name, row in _SOME.items()}
    refused = fail(errno.EPERM)
    rules = [
        op(LOAD, ARCH), op(EQUAL, arch, 1, 0), op(RETURN, KILL),
        op(LOAD, NUMBER), op(SET, X32_BIT, 0, 1), refused,
        op(ABOVE, LAST_KNOWN, 0, 1), fail(errno.ENOSYS),
    ]  # fmt: skip
    for name in _UNSEEN:
        rules += [op(EQUAL, _UNSEEN[name][column], 0, 1), fail(errno.ENOSYS)]
    doors = {} if listens else {name: _SOME[name] for name in ("socket", "bind", "listen")}
    changes, marked = ({}, fail(0)) if writes else (_CHANGES, refused)
    answers = ((_TABLE, refused), (changes, refused), (doors, refused), (_MARKS, marked))
    for table, answer in answers:
        for row in table.values():
            if row[column] != NOWHERE:
                rules += [op(EQUAL, row[column], 0, 1), answer]
    rules += when(number["clone"], [op(LOAD, ARGS), op(SET, CLONE_THREAD, 1, 0), refused])
    for name in ("kill", "tgkill"):
        rules += when(number[name], [op(LOAD, ARGS), op(EQUAL, own, 1, 0), refused])
    for name in ("prlimit64", "sched_setscheduler", "sched_setparam", "sched_setattr"):
        rules += when(number[name], [op(LOAD, ARGS), op(EQUAL, own, 2, 0), op(EQUAL, 0, 1, 0), refused])
    for name, (index, values) in _COMMANDS.items():
        checks = [part for value in values for part in (op(EQUAL, value, 0, 1), refused)]
        rules += when(number[name], [op(LOAD, ARGS + 8 * index), *checks])
    if not writes:
        rules += when(number["open"], [op(LOAD, ARGS + 8), op(SET, WRITING, 0, 1), refused])
        rules += when(number["openat"], [op(LOAD, ARGS + 16), op(SET, WRITING, 0, 1), refused])
    if listens:
        stream = [op(LOAD, ARGS + 8), op(AND, SOCK_TYPE_MASK), op(EQUAL, SOCK_STREAM, 1, 0), refused]
        rules += when(number["socket"], [op(LOAD, ARGS), op(EQUAL, AF_UNIX, 1, 0), refused, *stream])
    # Nothing is sent to an address: neither a datagram nor TCP's fast open gets out.
    rules += when(
        number["sendto"],
        [op(LOAD, ARGS + 32), op(EQUAL, 0, 1, 0), refused, op(LOAD, ARGS + 36), op(EQUAL, 0, 1, 0), refused],
    )
    return b"".join([*rules, op(RETURN, ALLOW)])


def when(number: int, checks: "list[bytes]") -> "list[bytes]":
    """Return rules for one call, which is allowed if no check fails; none where the processor does not have it."""
    if number == NOWHERE:
        return []
    return [op(EQUAL, number, 0, len(checks) + 1), *checks, op(RETURN, ALLOW)]


def fail(code: int) -> bytes:
    """Return the instruction that makes a call fail with an error number."""
    return op(RETURN, FAIL | code)


def op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one instruction."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
