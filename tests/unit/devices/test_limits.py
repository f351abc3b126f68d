import os
from pathlib import Path

import pytest

from kvant.devices.limits import cores, linux_memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1000000 kB\nMemAvailable:    8000000 kB\n"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path, group: str) -> None:
    write(root, "proc/meminfo", MEMINFO)
    write(root, "proc/self/cgroup", group)


def test_no_control_groups(tmp_path: Path) -> None:
    machine(tmp_path, "")
    found = linux_memory(tmp_path)
    assert found is not None
    assert (found.total_bytes, found.available_bytes, found.limited_by) == (16384000000, 8192000000, "machine")


def test_version_2_limit_of_a_group_around_counts(tmp_path: Path) -> None:
    machine(tmp_path, "0::/outer/inner\n")
    write(tmp_path, "sys/fs/cgroup/outer/memory.max", "4000000000\n")
    write(tmp_path, "sys/fs/cgroup/outer/memory.current", "1500000000\n")
    write(tmp_path, "sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 500000000\n")
    write(tmp_path, "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    found = linux_memory(tmp_path)
    assert found is not None
    assert (found.total_bytes, found.available_bytes) == (4000000000, 3000000000)
    assert found.limited_by == "control group"


def test_version_2_inside_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    machine(tmp_path, "0::/docker/0123abc\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "2000000000\n")
    found = linux_memory(tmp_path)
    assert found is not None
    assert found.total_bytes == 2000000000


def test_version_1_limit(tmp_path: Path) -> None:
    machine(tmp_path, "9:name=systemd:/\n4:memory:/box\n3:cpu,cpuacct:/box\n")
    write(tmp_path, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "3000000000\n")
    write(tmp_path, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1000000000\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    found = linux_memory(tmp_path)
    assert found is not None
    assert (found.total_bytes, found.available_bytes) == (3000000000, 2000000000)


def test_unreadable_meminfo_is_no_memory(tmp_path: Path) -> None:
    assert linux_memory(tmp_path) is None


@pytest.mark.parametrize(("quota", "most"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", 999)])
def test_cores_are_cut_by_the_quota(tmp_path: Path, quota: str, most: int) -> None:
    machine(tmp_path, "0::/box\n")
    write(tmp_path, "sys/fs/cgroup/box/cpu.max", quota)
    assert cores(tmp_path) == min(most, cores(tmp_path / "nothing"))


def test_version_1_quota(tmp_path: Path) -> None:
    machine(tmp_path, "3:cpu,cpuacct:/box\n")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "100000")
    write(tmp_path, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000")
    assert cores(tmp_path) == 1


def test_cores_follow_affinity() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
