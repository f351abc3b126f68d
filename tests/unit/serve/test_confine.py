"""What a confined process cannot do, tried by one."""

import json
import os
import platform
import subprocess
import sys

import pytest

from kvant.serve.engines.confine import CALLS, FORBIDDEN, program

PROBE = """
import json, os, socket, sys
from kvant.serve.engines.confine import confine
held = confine(address_space_bytes=1 << 34, open_files=64, parent=os.getppid())
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
def attempt(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0
def datagram():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def connect():
    socket.socket().connect(("127.0.0.1", port))
def fast_open():
    socket.socket().sendto(b"x", 0x20000000, ("127.0.0.1", port))
def program():
    os.execv("/bin/true", ["true"])
import resource
def many_files():
    files = [open("/dev/null") for _ in range(100)]
print(json.dumps({"held": held, "datagram": attempt(datagram), "connect": attempt(connect),
                  "fast_open": attempt(fast_open), "program": attempt(program), "files": attempt(many_files)}))
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in CALLS, reason="Linux's filter")
def test_no_way_out() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert "rlimits" in found["held"]
    assert found["files"] == 24  # EMFILE
    if "seccomp" not in found["held"]:
        pytest.skip("this kernel has no system call filters")
    assert {name: found[name] for name in ("datagram", "connect", "fast_open", "program")} == dict.fromkeys(
        ("datagram", "connect", "fast_open", "program"), 1
    )  # EPERM


@pytest.mark.parametrize("machine", sorted(CALLS))
def test_every_jump_of_the_filter_stays_inside(machine: str) -> None:
    arch, numbers = CALLS[machine]
    code = program(arch, numbers)
    assert set(FORBIDDEN) <= set(numbers)
    n = len(code) // 8
    for index in range(n):
        op, yes, no = int.from_bytes(code[index * 8 : index * 8 + 2], "little"), *code[index * 8 + 2 : index * 8 + 4]
        if op & 7 == 5:
            assert index + 1 + max(yes, no) < n
    assert code[-8:-6] == (6).to_bytes(2, "little")


@pytest.mark.skipif(os.name != "posix", reason="processes of POSIX")
def test_a_process_whose_owner_has_gone_ends_at_once() -> None:
    if sys.platform != "linux":
        pytest.skip("Linux tells the owner")
    code = (
        "from kvant.serve.engines.confine import confine; confine(address_space_bytes=0, open_files=64, parent=1 << 22)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 1
