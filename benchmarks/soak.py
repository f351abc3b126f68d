"""Many clients, several models, too little memory for all of them, and a worker killed every few seconds.

Every request must be answered whole, or refused in words, or break off where its worker was killed in the middle; the
gateway's memory must not grow; its counters must agree with what the clients saw.

    python benchmarks/soak.py MODEL.gguf [--minutes 30] [--clients 32] [--models 3] [--kill-every 20] [--json]
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kvant.runtime.server.loopback import Exchange, LoopbackError
from kvant.serve.extent import Extent
from kvant.serve.library import model_file
from kvant.serve.memory import prediction
from kvant.serve.settings import Settings
from serve import CHAT, Server, gateway, rss_bytes

PARALLEL, CONTEXT = 4, 256
REFUSALS = frozenset({429, 502, 503, 507})
SAMPLE_S = 2.0
COMPLETE = ("stop", "length", "tool_calls")


async def ask(server: Server, model: str, dice: random.Random) -> str:
    """Make one request; return how it ended."""
    body = {
        "model": model, "stream": True, "max_tokens": dice.choice((4, 16, 64)),
        "messages": [{"role": "user", "content": f"Tell me about {dice.random()}."}],
    }  # fmt: skip
    leaves_after = dice.choice((None,) * 9 + (3,))
    n, is_whole = 0, False
    try:
        async with Exchange(server.address, server.key, "POST", CHAT, json.dumps(body).encode()) as exchange:
            if exchange.status != 200:
                text = (await exchange.body()).decode()
                is_clear = exchange.status in REFUSALS and "error" in json.loads(text)
                return f"refused {exchange.status}" if is_clear else f"UNCLEAR {exchange.status}: {text[:100]}"
            async for payload in exchange.events():
                if b'"error"' in payload:
                    return "broken off, said why"
                n += 1
                is_whole = is_whole or b'"finish_reason":"' in payload
                if leaves_after is not None and n >= leaves_after and not is_whole:
                    return "left"
    except LoopbackError as error:
        return "broken off" if n or "middle" in str(error) else f"UNCLEAR {error}"
    return "answered" if is_whole else "broken off"


async def client(server: Server, names: list[str], seed: int, until: float, ends: Counter[str]) -> None:
    """Ask again and again."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        try:
            async with asyncio.timeout(300):
                end = await ask(server, dice.choice(names), dice)
        except TimeoutError:
            end = "UNCLEAR no answer in 300 s"
        ends[end] += 1
        if end.startswith("refused"):
            await asyncio.sleep(dice.random())


async def fetch(server: Server, path: str) -> str:
    """Fetch a page of the gateway's own."""
    async with Exchange(server.address, server.key, "GET", path) as exchange:
        return (await exchange.body()).decode()


async def kill(server: Server, every_s: float, until: float) -> int:
    """Kill a random worker again and again; return how many."""
    dice, killed = random.Random(0), 0
    while time.monotonic() + every_s < until:
        await asyncio.sleep(every_s)
        models = json.loads(await fetch(server, "/kvant/status"))["models"]
        pids = [model["pid"] for model in models if model["pid"]]
        if pids:
            os.kill(dice.choice(pids), signal.SIGKILL)
            killed += 1
    return killed


async def watch(pid: int, until: float) -> list[tuple[float, int]]:
    """Look at the gateway's memory until the end."""
    samples = []
    while time.monotonic() < until:
        samples.append((time.monotonic(), rss_bytes(pid)))
        await asyncio.sleep(SAMPLE_S)
    return samples


def total(text: str, name: str, **labels: tuple[str, ...]) -> float:
    """Add up a counter over its labels."""
    found = 0.0
    for line in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        if all(any(f'{key}="{value}"' in line[0] for value in values) for key, values in labels.items()):
            found += float(line[1])
    return found


async def soak(path: Path, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; see the module."""
    names = [f"model{i}" for i in range(options.models)]
    for name in names:
        (directory / f"{name}.gguf").write_bytes(path.read_bytes())
    one = prediction(model_file("m", path, "0"), Settings(parallel=PARALLEL))(Extent(CONTEXT), PARALLEL)
    os.environ["KVANT_MAX_RAM"] = str(int(one * (options.models - 0.5)))  # one model less than there are
    ends: Counter[str] = Counter()
    async with gateway(directory, PARALLEL, CONTEXT) as (server, pid, _):
        until = time.monotonic() + options.minutes * 60
        clients = [client(server, names, seed, until, ends) for seed in range(options.clients)]
        working = asyncio.gather(*clients)
        killed, samples = await asyncio.gather(kill(server, options.kill_every, until), watch(pid, until))
        await working
        text = await fetch(server, "/metrics")
        status = json.loads(await fetch(server, "/kvant/status"))
    late = samples[len(samples) // 3 :]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope if len(late) > 2 else 0.0
    return {
        "minutes": options.minutes, "clients": options.clients, "killed": killed, "requests": sum(ends.values()),
        "ends": dict(ends.most_common()), "unclear": sum(n for end, n in ends.items() if end.startswith("UNCLEAR")),
        "answered_by_metrics": total(text, "kvant_request_success_total", finished_reason=COMPLETE),
        "aborted_by_metrics": total(text, "kvant_request_success_total", finished_reason=("abort",)),
        "failed_by_metrics": total(text, "kvant_request_failed_total"),
        "crashes_by_metrics": total(text, "kvant_model_events_total", event=("crashed",)),
        "evictions_by_metrics": total(text, "kvant_model_events_total", event=("evicted",)),
        "left_running": sum(model["running"] + model["waiting"] for model in status["models"]),
        "rss_first_bytes": samples[0][1], "rss_last_bytes": samples[-1][1], "rss_slope_bytes_per_minute": slope * 60,
    }  # fmt: skip


def main() -> int:
    """Run and print; 1 if a request ended in no clear way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(soak(options.model, Path(directory), options))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{key:28} {value}" for key, value in found.items()))
    return 1 if found["unclear"] else 0


if __name__ == "__main__":
    sys.exit(main())
