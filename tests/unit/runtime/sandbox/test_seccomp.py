import itertools
import struct
from collections.abc import Iterable

import pytest

from kvant.runtime.sandbox import seccomp

SWITCHES = list(itertools.product((False, True), repeat=2))


def decided(code: bytes, number: int, *arguments: int, arch: int) -> int:
    """Run a filter over one call, as the kernel does."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    rules = [struct.unpack("<HBBI", code[i : i + 8]) for i in range(0, len(code), 8)]
    value, at = 0, 0
    while True:
        kind, yes, no, operand = rules[at]
        at += 1
        if kind == seccomp.LOAD:
            (value,) = struct.unpack_from("<I", data, operand)
        elif kind == seccomp.AND:
            value &= operand
        elif kind == seccomp.RETURN:
            return int(operand)
        else:
            tests = {
                seccomp.EQUAL: value == operand,
                seccomp.ABOVE: value > operand,
                seccomp.SET: bool(value & operand),
            }
            at += yes if tests[kind] else no


@pytest.mark.parametrize("machine", sorted(seccomp.MACHINES))
@pytest.mark.parametrize(("listens", "writes"), SWITCHES)
def test_every_jump_stays_inside_and_every_call_is_decided(machine: str, listens: bool, writes: bool) -> None:
    code = seccomp.program(machine, own=1234, listens=listens, writes=writes)
    arch = seccomp.MACHINES[machine][0]
    refused = {n for n in range(600) if decided(code, n, arch=arch) & 0x7FFF0000 == seccomp.FAIL}
    assert len(code) // 8 < 4096
    assert set(range(463, 600)) <= refused
    column = seccomp.MACHINES[machine][1]
    always = {row[column] for row in seccomp._TABLE.values()} - {seccomp.NOWHERE}
    assert always <= refused
    assert decided(code, 3, arch=1) == seccomp.KILL
    marks = {row[column] for row in seccomp._MARKS.values()} - {seccomp.NOWHERE}
    assert {decided(code, n, arch=arch) for n in marks} == {seccomp.FAIL | (not writes)}


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [("x86_64", [*range(29, 32), *range(64, 72), 220, *range(240, 246)]), ("aarch64", range(180, 198))],
)
def test_nothing_that_is_shared_by_number_is_left(machine: str, numbers: Iterable[int]) -> None:
    """Whoever has a number needs no `get`: all calls of System V's and POSIX's messages, semaphores and memory."""
    code = seccomp.program(machine, own=1234, listens=True, writes=True)
    arch = seccomp.MACHINES[machine][0]
    assert {decided(code, number, arch=arch) for number in numbers} == {seccomp.FAIL | 1}


@pytest.mark.parametrize("machine", sorted(seccomp.MACHINES))
def test_calls_that_depend_on_their_arguments(machine: str) -> None:
    arch, column, _ = seccomp.MACHINES[machine]
    number = {name: row[column] for name, row in seccomp._SOME.items()}
    no = seccomp.FAIL | 1

    def ask(name: str, *arguments: int, listens: bool = False, writes: bool = False) -> int:
        code = seccomp.program(machine, own=1234, listens=listens, writes=writes)
        return decided(code, number[name], *arguments, arch=arch)

    assert ask("clone", 0x003D0F00) == seccomp.ALLOW  # as pthread_create asks
    assert ask("clone", 0x01200011) == no  # as fork does
    assert [ask("tgkill", pid, 5, 6) for pid in (1234, 1, 0xFFFFFFFF)] == [seccomp.ALLOW, no, no]
    assert [ask("prlimit64", pid) for pid in (0, 1234, 77)] == [seccomp.ALLOW, seccomp.ALLOW, no]
    assert ask("socket", 1, 1) == no
    assert ask("socket", 1, 1 | 0x80000, listens=True) == seccomp.ALLOW
    assert [ask("socket", family, kind, listens=True) for family, kind in ((1, 2), (2, 1), (16, 3))] == [no, no, no]
    assert ask("sendto", 3, 4, 5, 0, 0) == seccomp.ALLOW
    assert [ask("sendto", 3, 4, 5, 0, address) for address in (8, 8 << 32)] == [no, no]
    assert [ask("openat", 0, 0, flags) for flags in (0, 1, 2, 0o100, 0o1000)] == [seccomp.ALLOW, no, no, no, no]
    assert ask("openat", 0, 0, 0o101, writes=True) == seccomp.ALLOW
    assert [ask("fcntl", 1, command) for command in (1, 3, 8, 10, 15)] == [seccomp.ALLOW] * 2 + [no] * 3
    assert [ask("prctl", option) for option in (15, 1)] == [seccomp.ALLOW, no]
    assert [ask("ioctl", 0, request) for request in (0x5401, 0x5412, 0x541C)] == [seccomp.ALLOW, no, no]


def test_no_number_stands_twice() -> None:
    tables = (seccomp._TABLE, seccomp._CHANGES, seccomp._MARKS, seccomp._UNSEEN, seccomp._SOME)
    for column in (0, 1):
        numbers = [row[column] for table in tables for row in table.values() if row[column] != seccomp.NOWHERE]
        assert len(numbers) == len(set(numbers))
