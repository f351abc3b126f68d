"""What the gateway costs: the engine's bare server against the same server behind the gateway, same model, same run.

Requests to both alternate, so that what else the machine does falls on both. The client is the same and asks both for
`/v1/chat/completions`.

    python benchmarks/serve.py MODEL.gguf [--rounds 10] [--tokens 64] [--streams 64] [--json]
    python benchmarks/serve.py MODEL.gguf --speculate [--draft SMALL.gguf] [--rounds 3] [--tokens 64]
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvant.runtime.server.loopback import Exchange
from kvant.runtime.server.workers import start_worker
from kvant.serve.extent import Extent
from kvant.serve.library import ModelFile, model_file
from kvant.serve.memory import start_message
from kvant.serve.settings import Settings
from kvant.serve.sizing import Size

CHAT = "/v1/chat/completions"
TURNS = 3
QUESTION = "Write a long story about a lighthouse keeper and the sea."


@dataclass(frozen=True)
class Server:
    """Where to ask, and with which key."""

    address: str | int
    key: str


@dataclass(frozen=True)
class Timing:
    """One streamed answer: seconds to the first token, tokens, seconds from there to the last."""

    first_s: float
    tokens: int
    rest_s: float

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (self.tokens - 1) / self.rest_s if self.rest_s else 0.0


async def ask(server: Server, tokens: int, *, model: str = "model") -> Timing:
    """Stream one answer of `tokens` tokens."""
    body = {
        "model": model, "stream": True, "max_tokens": tokens, "temperature": 0.8, "seed": 1,
        "messages": [{"role": "user", "content": QUESTION}], "logit_bias": {},
    }  # fmt: skip
    begun = time.perf_counter()
    first = last = begun
    n = 0
    async with Exchange(server.address, server.key, "POST", CHAT, json.dumps(body).encode()) as exchange:
        if exchange.status != 200:
            raise RuntimeError((await exchange.body()).decode())
        async for payload in exchange.events():
            if b'"delta"' in payload:
                last = time.perf_counter()
                first = first if n else last
                n += 1
    return Timing(first - begun, n, last - first)


@contextlib.asynccontextmanager
async def gateway(directory: Path, parallel: int, context: int) -> AsyncIterator[tuple[Server, int, float]]:
    """Start a gateway in a process of its own; yield where it is, its process id and the seconds it took to start."""
    options = ["--parallel", str(parallel), "--context", str(context)]
    command = ["-m", "kvant.cli.main", "serve", "--models", str(directory), "--port", "0", "--json", *options]
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        text = ""
        while '"url"' not in text:
            text += (await process.stdout.readline()).decode() or exit("the gateway did not start")
        port = int(text.split('"url":')[1].rpartition(":")[2].split('"')[0])
        yield Server(port, "any"), process.pid, time.perf_counter() - begun
    finally:
        process.terminate()
        await process.wait()


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def cpu_s(pid: int) -> float:
    """Processor time a process has used; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def sized(file: ModelFile, context: int, parallel: int) -> Size:
    """Return the size of a worker, with memory to spare."""
    return Size(extent=Extent(context), parallel=parallel, size_bytes=file.size_bytes * 4)


async def measure(path: Path, directory: Path, *, rounds: int, tokens: int, streams: int) -> dict[str, Any]:
    """Measure both; see the module."""
    name = path.stem
    found: dict[str, Any] = {"tokens": tokens, "streams": streams, "load_average": os.getloadavg()[0]}
    file = model_file(name, path, "0")
    for parallel, kind in ((1, "one"), (streams, "many")):
        settings = Settings(models=directory, parallel=parallel, context=256)
        worker = await start_worker(start_message(file, sized(file, 256, parallel), settings), timeout_s=600)
        bare = Server(worker._address, worker._start.api_key)
        try:
            async with gateway(directory, parallel, 256) as (behind, pid, start_s):
                if kind == "one":
                    found["start_s"], found["idle_rss_bytes"] = start_s, rss_bytes(pid)
                    found["cold_first_token_s"] = (await ask(behind, 2, model=name)).first_s
                    found |= await one_client(bare, behind, name, rounds, tokens)
                else:
                    await asyncio.gather(ask(bare, 2), ask(behind, 2, model=name))
                    before, before_bare = cpu_s(pid), cpu_s(worker.pid)
                    found |= await many_clients(bare, behind, name, streams, tokens)
                    # Processor time is what the gateway takes from the engine, however busy the machine is.
                    found["gateway_cpu_s"], found["bare_cpu_s"] = cpu_s(pid) - before, cpu_s(worker.pid) - before_bare
                    found["gateway_cpu_share"] = found["gateway_cpu_s"] / (found["gateway_cpu_s"] + found["bare_cpu_s"])
                    found["gateway_cpu_s_per_token"] = found["gateway_cpu_s"] / (TURNS * streams * tokens)
                    found["rss_after_bytes"] = rss_bytes(pid)
        finally:
            await worker.stop()
    return found


async def one_client(bare: Server, behind: Server, name: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Alternate single streams."""
    await ask(bare, 2)
    timings: dict[str, list[Timing]] = {"bare": [], "gateway": []}
    for _ in range(rounds):
        timings["bare"].append(await ask(bare, tokens))
        timings["gateway"].append(await ask(behind, tokens, model=name))
    firsts: dict[str, list[float]] = {"bare": [], "gateway": []}
    for _ in range(rounds * 5):
        firsts["bare"].append((await ask(bare, 1)).first_s)
        firsts["gateway"].append((await ask(behind, 1, model=name)).first_s)
    rates = {key: statistics.median(t.rate for t in value) for key, value in timings.items()}
    medians = {key: statistics.median(value) for key, value in firsts.items()}
    quick = {key: statistics.quantiles(value, n=4)[0] for key, value in firsts.items()}
    return {
        "bare_tokens_s": rates["bare"], "gateway_tokens_s": rates["gateway"],
        "ratio_one": rates["gateway"] / rates["bare"],
        "ratio_one_of_pairs": statistics.median(
            b.rate / a.rate for a, b in zip(timings["bare"], timings["gateway"], strict=True)
        ),
        "first_token_bare_s": medians["bare"], "added_first_token_s": medians["gateway"] - medians["bare"],
        "added_first_token_quartile_s": quick["gateway"] - quick["bare"],
    }  # fmt: skip


async def many_clients(bare: Server, behind: Server, name: str, streams: int, tokens: int) -> dict[str, Any]:
    """Many streams at a time: three turns of each."""
    totals: dict[str, list[float]] = {"bare": [], "gateway": []}
    spreads = []
    for _ in range(TURNS):
        for key, server in (("bare", bare), ("gateway", behind)):
            begun = time.perf_counter()
            answers = await asyncio.gather(*(ask(server, tokens, model=name) for _ in range(streams)))
            totals[key].append(sum(answer.tokens for answer in answers) / (time.perf_counter() - begun))
            if key == "gateway":
                ends = [answer.tokens / (answer.first_s + answer.rest_s) for answer in answers if answer.tokens]
                spreads.append(max(ends) / min(ends))
    medians = {key: statistics.median(value) for key, value in totals.items()}
    return {
        "many_bare_tokens_s": medians["bare"], "many_gateway_tokens_s": medians["gateway"],
        "ratio_many": medians["gateway"] / medians["bare"], "fairness_max_by_min": statistics.median(spreads),
    }  # fmt: skip


EDIT = """def area(width, height):
    result = width * height
    print("the area is", result)
    return result
"""


async def speculation(path: Path, directory: Path, draft: Path | None, rounds: int, tokens: int) -> dict[str, Any]:
    """Measure tokens per second with and without guessing ahead, greedily, on a text that repeats itself."""
    file = model_file(path.stem, path, "0")
    found: dict[str, Any] = {}
    body = {"prompt": EDIT * 4 + "def area(", "n_predict": tokens, "temperature": 0, "ignore_eos": True}
    kinds = ["none", "ngram", *(["draft"] if draft else [])]
    settings = {
        kind: Settings(models=directory, parallel=1, context=1024, speculate=kind, draft=draft)  # type: ignore[arg-type]
        for kind in kinds
    }
    workers = {
        kind: await start_worker(start_message(file, sized(file, 1024, 1), each), timeout_s=600)
        for kind, each in settings.items()
    }
    try:
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        words: dict[str, str] = {}
        for _ in range(rounds):
            for kind, worker in workers.items():
                answer = (await worker.post("/completion", body))[1]
                rates[kind].append(answer["timings"]["predicted_per_second"])
                words[kind] = answer["content"]
        for kind, worker in workers.items():
            found[f"speculate_{kind}_tokens_s"] = statistics.median(rates[kind])
            counts = dict(
                re.findall(r"llamacpp:spec_decode_num_(\w+)_total (\d+)", (await worker.get("/metrics"))[1].decode())
            )
            if int(counts.get("draft_tokens", 0)):
                found[f"speculate_{kind}_accepted"] = int(counts["accepted_tokens"]) / int(counts["draft_tokens"])
            found[f"speculate_{kind}_same_words"] = words[kind] == words["none"]
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers.values()))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    for name, default in (("rounds", 10), ("tokens", 64), ("streams", 64), ("parallel", 1), ("context", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--speculate", action="store_true", help="measure guessing ahead instead")
    parser.add_argument("--draft", type=Path, help="a small GGUF file that guesses")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / options.model.name
        try:
            path.hardlink_to(options.model)
        except OSError:
            path.write_bytes(options.model.read_bytes())
        work = (
            speculation(path, Path(directory), options.draft, options.rounds, options.tokens)
            if options.speculate
            else measure(path, Path(directory), rounds=options.rounds, tokens=options.tokens, streams=options.streams)
        )
        found = asyncio.run(work)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        print(f"{key:32} {value:,.4f}" if isinstance(value, float) else f"{key:32} {value:,}")


if __name__ == "__main__":
    main()
