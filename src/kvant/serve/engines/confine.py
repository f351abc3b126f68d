"""Keep an engine's process in: it reads hostile files with native code.

What holds without any privilege, by system:
    everywhere   no core dump, bounded open files and address space (POSIX), an environment without secrets
    Linux        ends with its owner; no new privileges; and a system call filter, where the kernel offers one: no
                 outgoing connection, no datagram, no program started, no look into other processes
What does not hold: it can read what its user can read. Run the gateway as a user of its own.
"""

import contextlib
import ctypes
import os
import platform
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SECCOMP_SET_MODE_FILTER = 1
RET_ALLOW, RET_EPERM, RET_KILL = 0x7FFF0000, 0x00050001, 0x80000000
# Offsets in struct seccomp_data, linux/seccomp.h; little-endian halves of 64-bit arguments.
NUMBER, ARCH, ARGS = 0, 4, 16
LOAD, EQUAL, SET, RETURN, AND = 0x20, 0x15, 0x45, 0x06, 0x54
SOCK_STREAM, SOCK_TYPE_MASK = 1, 0xF
X32_BIT = 0x40000000

# Numbers of system calls. Source: linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
FORBIDDEN = (
    "connect", "sendmsg", "sendmmsg", "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev",
    "io_uring_setup", "bpf", "mount", "kexec_load", "init_module", "finit_module", "keyctl", "userfaultfd",
)  # fmt: skip
CALLS = {
    "x86_64": (0xC000003E, {
        "socket": 41, "sendto": 44, "connect": 42, "sendmsg": 46, "sendmmsg": 307, "execve": 59, "execveat": 322,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "io_uring_setup": 425, "bpf": 321,
        "mount": 165, "kexec_load": 246, "init_module": 175, "finit_module": 313, "keyctl": 250, "userfaultfd": 323,
        "seccomp": 317,
    }),
    "aarch64": (0xC00000B7, {
        "socket": 198, "sendto": 206, "connect": 203, "sendmsg": 211, "sendmmsg": 269, "execve": 221, "execveat": 281,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "io_uring_setup": 425, "bpf": 280,
        "mount": 40, "kexec_load": 104, "init_module": 105, "finit_module": 273, "keyctl": 219, "userfaultfd": 282,
        "seccomp": 277,
    }),
}  # fmt: skip


def confine(*, address_space_bytes: int, open_files: int, parent: int) -> tuple[str, ...]:
    """Give up what an engine does not need, for ever; call it before the model is opened.

    Args:
        address_space_bytes: Most memory the process may map; 0 for any.
        open_files: Most files it may have open.
        parent: Process id of the owner, whose end ends this process.

    Returns:
        Names of what now holds.
    """
    held = []
    if _limit_resources(address_space_bytes, open_files):
        held.append("rlimits")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            held.append("pdeathsig")
        if parent and os.getppid() != parent:  # the owner ended before it was asked for
            os._exit(1)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            held.append("no_new_privs")
            if _filter_calls(libc):
                held.append("seccomp")
    return tuple(held)


def _limit_resources(address_space_bytes: int, open_files: int) -> bool:
    if sys.platform == "win32":
        return False
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = open_files if hard == resource.RLIM_INFINITY else min(open_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if address_space_bytes and sys.platform == "linux":
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, address_space_bytes))
    return True


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Install the filter on every thread; False where the processor or kernel has none."""
    known = CALLS.get(platform.machine())
    if known is None:
        return False
    arch, numbers = known
    code = program(arch, numbers)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    loaded = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    tsync = 1
    done: int = libc.syscall(numbers["seccomp"], SECCOMP_SET_MODE_FILTER, tsync, ctypes.byref(loaded))
    return done == 0


def program(arch: int, numbers: dict[str, int]) -> bytes:
    """Return the filter as classic BPF: another architecture's calls kill, forbidden ones fail with EPERM.

    Sockets may be streams only, and nothing is sent to an address: neither a datagram nor TCP's fast open gets out.
    """
    rules = [
        _op(LOAD, ARCH), _op(EQUAL, arch, 1, 0), _op(RETURN, RET_KILL),
        _op(LOAD, NUMBER), _op(SET, X32_BIT, 0, 1), _op(RETURN, RET_EPERM),
    ]  # fmt: skip
    for name in FORBIDDEN:
        rules += [_op(EQUAL, numbers[name], 0, 1), _op(RETURN, RET_EPERM)]
    rules += [
        _op(EQUAL, numbers["socket"], 0, 5), _op(LOAD, ARGS + 8), _op(AND, SOCK_TYPE_MASK),
        _op(EQUAL, SOCK_STREAM, 1, 0), _op(RETURN, RET_EPERM), _op(RETURN, RET_ALLOW),
        _op(EQUAL, numbers["sendto"], 0, 5), _op(LOAD, ARGS + 4 * 8), _op(EQUAL, 0, 0, 2),
        _op(LOAD, ARGS + 4 * 8 + 4), _op(EQUAL, 0, 1, 0), _op(RETURN, RET_EPERM), _op(RETURN, RET_ALLOW),
    ]  # fmt: skip
    return b"".join(rules)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
