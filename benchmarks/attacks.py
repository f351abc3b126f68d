"""What attacks on the gateway cost it: a gateway of its own on loopback, attacked for seconds, looked at from outside.

Each attack is bounded in number and time. While it lasts an honest client asks /health again and again; its answers are
counted and timed. Memory, processor time and log are those of the gateway's process.

    python benchmarks/attacks.py [--only NAME] [--seconds 5] [--json] [--path SRC]

`--path` measures another copy of kvant (a directory that holds the package), for a comparison.
"""

import argparse
import contextlib
import http.client
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
GET = HALF + b"\r\n"
MIB = 1 << 20
DESCRIPTORS = 1024


class Gateway:
    """A gateway in a process of its own, without models."""

    def __init__(self, root: Path, path: str | None, *options: str) -> None:
        environment = {**os.environ, "KVANT_HOME": str(root / "home")} | ({"PYTHONPATH": path} if path else {})
        (root / "models").mkdir(exist_ok=True)
        self.log = root / "log"
        command = ["-m", "kvant.cli.main", "serve", "--models", str(root / "models"), "--port", "0", "--json", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, env=environment, text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),
            )  # fmt: skip
        assert self.process.stdout is not None
        text = "".join(self.process.stdout.readline() for _ in range(3))
        self.port = int(json.loads(text)["url"].rpartition(":")[2])
        self.peak_mib = 0.0

    def rss_mib(self) -> float:
        """Return its resident memory, and note the peak."""
        found = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
        self.peak_mib = max(self.peak_mib, found)
        return found

    def cpu_s(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connect(self, data: bytes = b"") -> socket.socket:
        """Open a connection and send something."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        with contextlib.suppress(OSError):
            made.sendall(data)
        return made

    def health(self) -> int:
        """Return the status of /health; 0 where none came within two seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


def request(path: str = "/v1/chat/completions", *, length: int | None = None, more: str = "") -> bytes:
    """Return the head of a request with a body."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}{size}\r\n\r\n".encode()


Attack = Callable[[Gateway, float, list[socket.socket]], None]


def idle(gateway: Gateway, until: float, held: list[socket.socket], *, n: int = 1100, data: bytes = b"") -> None:
    """Connections that send nothing."""
    for _ in range(n):
        with contextlib.suppress(OSError):
            held.append(gateway.connect(data))
    time.sleep(max(0.0, until - time.monotonic()))


def half_heads(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """Connections whose head comes byte by byte."""
    idle(gateway, 0, held, n=530, data=HALF)
    while time.monotonic() < until:
        for sock in held:
            with contextlib.suppress(OSError):
                sock.send(b"x")
        time.sleep(0.5)


def flood(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """Connections as fast as they can be made, never closed."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            held.append(gateway.connect())
        if len(held) > 3000:
            held.pop(0).close()


def slow_bodies(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """Bodies that come byte by byte."""
    idle(gateway, 0, held, n=530, data=request(length=10_000) + b"{")
    while time.monotonic() < until:
        for sock in held:
            with contextlib.suppress(OSError):
                sock.send(b" ")
        time.sleep(0.5)


def large_bodies(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """24 bodies of 30 MiB, each short of its last byte."""
    for _ in range(24):
        sock = gateway.connect(request(length=30 * MIB))
        sock.settimeout(0.5)
        with contextlib.suppress(OSError):
            sock.sendall(b" " * (30 * MIB - 1))
        held.append(sock)
    time.sleep(max(0.0, until - time.monotonic()))


def tiny_chunks(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """A body in chunks of one byte."""
    while time.monotonic() < until:
        held.append(gateway.connect(request()))
        with contextlib.suppress(OSError):
            while time.monotonic() < until:
                held[-1].sendall(b"1\r\na\r\n" * 20_000)


def unread(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """Requests sent on and on, whose answers nobody reads."""
    for _ in range(100):
        sock = gateway.connect()
        sock.setblocking(False)
        held.append(sock)
    data = b"GET /ui/chat.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    while time.monotonic() < until:
        for sock in held:
            with contextlib.suppress(OSError):
                sock.send(data)
        time.sleep(0.1)


def log_lines(gateway: Gateway, until: float, held: list[socket.socket]) -> None:
    """Requests for nothing, as fast as they are answered."""
    path = b"/" + b"x" * 190
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            held[:] = [gateway.connect()]
            while time.monotonic() < until:
                held[0].sendall((b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n") * 50)
                held[0].recv(1 << 20)


def upgrades(gateway: Gateway, until: float, held: list[socket.socket]) -> None:  # noqa: ARG001
    """Offers of another protocol."""
    while time.monotonic() < until:
        with (
            contextlib.suppress(OSError),
            gateway.connect(HALF + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n") as sock,
        ):
            sock.recv(4096)


def no_http(gateway: Gateway, until: float, held: list[socket.socket]) -> None:  # noqa: ARG001
    """What is no HTTP at all."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError), gateway.connect(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") as sock:
            sock.recv(4096)


ATTACKS: tuple[Attack, ...] = (
    idle, half_heads, flood, slow_bodies, large_bodies, tiny_chunks, unread, log_lines, upgrades, no_http,
)  # fmt: skip


@contextlib.contextmanager
def gateway(path: str | None) -> Iterator[Gateway]:
    """Run a gateway until the block ends."""
    with tempfile.TemporaryDirectory() as directory:
        running = Gateway(Path(directory), path)
        try:
            yield running
        finally:
            running.process.kill()
            running.process.wait()


def measure(attack: Attack, path: str | None, seconds: float) -> dict[str, Any]:
    """Attack a new gateway and look at it."""
    with gateway(path) as running:
        assert running.health() == 200
        idle_mib, cpu, size = running.rss_mib(), running.cpu_s(), running.log.stat().st_size
        held: list[socket.socket] = []
        begun = time.monotonic()
        worker = threading.Thread(target=attack, args=(running, begun + seconds, held))
        worker.start()
        statuses, took = [], []
        while worker.is_alive():
            asked = time.monotonic()
            statuses.append(running.health())
            took.append(time.monotonic() - asked)
            running.rss_mib()
            time.sleep(0.05)
        wall = time.monotonic() - begun
        found = {
            "attack": attack.__name__, "what": (attack.__doc__ or "").rstrip("."),
            "health_ok": f"{statuses.count(200)}/{len(statuses)}",
            "health_ms_median": round(1000 * statistics.median(took)), "health_ms_most": round(1000 * max(took)),
            "idle_mib": round(idle_mib), "peak_mib": round(running.peak_mib),
            "cpu": round((running.cpu_s() - cpu) / wall, 2),
            "log_kb_s": round((running.log.stat().st_size - size) / wall / 1000, 1),
        }  # fmt: skip
        for sock in held:
            sock.close()
        time.sleep(1)
        found["health_after"] = running.health()
        return found


def main() -> None:
    """Print what each attack costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="name of one attack")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each lasts at least")
    parser.add_argument("--path", help="directory of another kvant package")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    for attack in ATTACKS:
        if given.only in (None, attack.__name__):
            found = measure(attack, given.path, given.seconds)
            print(json.dumps(found) if given.json else "  ".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
