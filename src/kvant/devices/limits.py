"""What this process may use: memory and cores under control groups and affinity, not what the whole machine has.

Sources: the kernel's cgroup-v2.rst (`memory.max`, `memory.current`, `cpu.max`), cgroup-v1 memory.rst and
sched-bwc.rst, proc_meminfo(5).
"""

import functools
import os
import sys
from pathlib import Path

import msgspec

# A version 1 group without a limit reports the largest page-aligned int64; nothing real is near it.
UNLIMITED_BYTES = 1 << 60
UNTOLD_BYTES = 4 << 30
"""Free memory where the system does not tell."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Main memory of this process.

    Attributes:
        total_bytes: What it may use at most: the machine's memory or the control group's limit.
        available_bytes: What it could take now without swapping.
        limited_by: `machine` or `control group`.
    """

    total_bytes: int
    available_bytes: int
    limited_by: str = "machine"


def memory(root: Path = Path("/")) -> Memory | None:
    """Return the memory this process may use; None where the system does not tell."""
    if sys.platform.startswith("linux"):
        return linux_memory(root)
    if sys.platform == "darwin":
        return _sysconf_memory()
    if sys.platform == "win32":
        return _windows_memory()
    return _sysconf_memory()


def spare_bytes() -> int:
    """Memory that one step of work may take: a third of what is free, so that caches and others have theirs."""
    known = memory()
    return (known.available_bytes if known else UNTOLD_BYTES) // 3


def linux_memory(root: Path) -> Memory | None:
    """Read /proc/meminfo and the control groups below `root`."""
    fields = _meminfo(root / "proc/meminfo")
    if "MemTotal" not in fields:
        return None
    total = fields["MemTotal"]
    available = fields.get("MemAvailable", fields.get("MemFree", total))
    limited_by = "machine"
    for limit, used in _group_memory(root):
        available = min(available, max(0, limit - used))
        if limit < total:
            total, limited_by = limit, "control group"
    return Memory(total_bytes=total, available_bytes=available, limited_by=limited_by)


def cores(root: Path = Path("/")) -> int:
    """Cores this process may keep busy: affinity, cut by the control group's quota; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    if sys.platform.startswith("linux"):
        count = min(count, _cores_of_quotas(root))
    return max(1, count)


def _meminfo(path: Path) -> dict[str, int]:
    """Values of /proc/meminfo in bytes."""
    fields = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if parts and parts[0].isdigit():
            fields[name] = int(parts[0]) * 1024
    return fields


def _group_memory(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes used that cannot be reclaimed) of every control group around this process that has a limit."""
    found = []
    for directory in _group_directories(root, controller="", mount="sys/fs/cgroup"):
        limit = _number(directory / "memory.max")
        if limit is not None:
            used = (_number(directory / "memory.current") or 0) - _stat(directory, "inactive_file")
            found.append((limit, max(0, used)))
    for directory in _group_directories(root, controller="memory", mount="sys/fs/cgroup/memory"):
        limit = _number(directory / "memory.limit_in_bytes")
        if limit is not None and limit < UNLIMITED_BYTES:
            used = (_number(directory / "memory.usage_in_bytes") or 0) - _stat(directory, "total_inactive_file")
            found.append((limit, max(0, used)))
    return found


@functools.cache  # asked for by every kernel call; a group's quota hardly changes while a process runs
def _cores_of_quotas(root: Path) -> int:
    return min((max(1, int(quota)) for quota in _group_quotas(root)), default=sys.maxsize)


def _group_quotas(root: Path) -> list[float]:
    """CPU quotas in cores of every control group around this process that has one."""
    quotas = []
    for directory in _group_directories(root, controller="", mount="sys/fs/cgroup"):
        parts = _text(directory / "cpu.max").split()
        if len(parts) == 2 and parts[0].isdigit() and int(parts[1]) > 0:
            quotas.append(int(parts[0]) / int(parts[1]))
    for directory in _group_directories(root, controller="cpu", mount="sys/fs/cgroup/cpu"):
        quota, period = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
        if quota and period:
            quotas.append(quota / period)
    return quotas


def _group_directories(root: Path, *, controller: str, mount: str) -> list[Path]:
    """The process's control group and those around it; `controller` is empty for version 2.

    Inside a container the path in /proc/self/cgroup may be the host's; its directories are then absent here and the
    group mounted at the top is the container's own, so the list always ends with the mount itself.
    """
    inside = Path()
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controller in controllers.split(","):
            inside = Path(path.strip().lstrip("/"))
    top = root / mount
    return [top / inside, *(top / parent for parent in inside.parents)] if inside.parts else [top]


def _stat(directory: Path, name: str) -> int:
    """One counter of a group's memory.stat; 0 if absent."""
    for line in _text(directory / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """A file's only number; None if absent, negative or the word `max`."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """A small system file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysconf_memory() -> Memory | None:
    """Physical memory by POSIX sysconf; what is free now is not told, so half of it is taken as available."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return Memory(total_bytes=total, available_bytes=total // 2)


def _windows_memory() -> Memory | None:
    """Physical memory by GlobalMemoryStatusEx."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong), ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "tp", "ap", "tv", "av", "x")),
        )  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009  absent from the stubs of other systems
    if not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Memory(total_bytes=status.total, available_bytes=status.available)
