"""Workers that are real: the engine's own server in a child process."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvant.errors import EngineReplyError, WorkerError
from kvant.runtime.server import loopback, workers
from kvant.runtime.server.start import Start
from kvant.runtime.server.workers import WorkerProcess, _fatal, _telling, start_worker
from kvant.serve.lease import _may_have_ended_it
from kvant.serve.library import DirectoryLibrary
from kvant.serve.scheduler import Scheduler
from kvant.serve.settings import Settings

pytestmark = pytest.mark.heavy

COMPLETION = {"prompt": "Hello", "n_predict": 400, "stream": True, "ignore_eos": True}
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc")


def start_of(path: Path, **changes: object) -> Start:
    values: dict[str, object] = {
        "path": str(path), "name": "tiny", "api_key": "", "context": 512, "parallel": 2, "threads": 1,
        "http_threads": 4, "address_space_bytes": 8 << 30,
    }  # fmt: skip
    return Start(**(values | changes))  # type: ignore[arg-type]


def run(path: Path, test: Callable[[WorkerProcess], Awaitable[None]], **changes: object) -> None:
    async def body() -> None:
        async with asyncio.timeout(120):
            worker = await start_worker(start_of(path, **changes), timeout_s=100)
            try:
                await test(worker)
            finally:
                await worker.stop()
            assert not worker.alive

    asyncio.run(body())


def test_whole_answers_streams_and_refusals(models: Path) -> None:
    async def test(worker: WorkerProcess) -> None:
        status, body = await worker.post("/tokenize", {"content": "Hello"})
        assert status == 200
        assert body["tokens"]
        assert (await worker.get("/health"))[0] == 200
        assert await worker.healthy()
        payloads = [p async for p in worker.stream("/completion", COMPLETION | {"n_predict": 3})]
        assert len(payloads) >= 3
        assert b'"stop":true' in payloads[-1]
        status, body = await worker.post("/v1/chat/completions", {"messages": 3})
        assert (status, "error" in body) == (400, True)
        with pytest.raises(EngineReplyError, match=r"engine: answered 400") as caught:
            [p async for p in worker.stream("/v1/chat/completions", {"messages": 3, "stream": True})]
        assert caught.value.status == 400

    run(models / "tiny.gguf", test)


def test_a_stream_that_is_closed_stops_the_engine(models: Path) -> None:
    async def test(worker: WorkerProcess) -> None:
        async with contextlib.aclosing(worker.stream("/completion", COMPLETION)) as events:  # type: ignore[type-var]
            async for _ in events:
                break
        # The only slot is free again long before the rest of the answer could have been made.
        payloads = [p async for p in worker.stream("/completion", COMPLETION | {"n_predict": 1})]
        assert b'"stop":true' in payloads[-1]

    run(models / "tiny.gguf", test, parallel=1)


@needs_posix
def test_a_crash_is_an_error_that_names_the_signal_and_quotes_no_request(models: Path) -> None:
    async def test(worker: WorkerProcess) -> None:
        async def read() -> None:
            async for _ in worker.stream("/completion", COMPLETION):
                os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(WorkerError, match=r"model 'tiny': the engine crashed \(signal 9"):
            await read()
        with pytest.raises(WorkerError, match="crashed"):
            await worker.post("/tokenize", {"content": "x"})
        assert not worker.alive

    run(models / "tiny.gguf", test)
    assert _telling(["0.1 I srv: loading", "0.2 I kvant-engine: Failed to start."]) == [
        "kvant-engine: Failed to start."
    ]
    assert _fatal(["got exception: secret words", "GGML_ASSERT(n > 0) failed"]) == ["GGML_ASSERT(n > 0) failed"]


def test_a_file_that_cannot_be_loaded_is_an_error_in_the_engines_words(models: Path) -> None:
    with pytest.raises(WorkerError, match=r"model 'tiny': the engine could not be loaded \(status 1: .*[Ff]ail"):
        asyncio.run(start_worker(start_of(models / "broken.gguf"), timeout_s=100))


def test_a_load_that_takes_too_long_leaves_nothing(models: Path) -> None:
    spawned: list[WorkerProcess] = []
    with pytest.raises(WorkerError, match="was not loaded within 0 s"):
        asyncio.run(start_worker(start_of(models / "tiny.gguf"), timeout_s=0.0, spawned=spawned.append))
    assert not spawned[0].alive


@needs_linux
def test_a_worker_has_no_secrets_no_core_dumps_and_a_bounded_memory(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")

    async def test(worker: WorkerProcess) -> None:
        process = Path(f"/proc/{worker.pid}")
        assert b"HF_TOKEN" not in (process / "environ").read_bytes()
        limits = {line[:25].strip(): line[25:].split() for line in (process / "limits").read_text().splitlines()}
        assert limits["Max core file size"][0] == "0"
        assert limits["Max address space"][0] == str(8 << 30)
        assert b"kvant-" not in (process / "cmdline").read_bytes()
        assert {"rlimits", "pdeathsig", "no_new_privs"} <= set(worker.confined)

    run(models / "tiny.gguf", test)


def test_requests_need_the_workers_own_key(models: Path) -> None:
    async def test(worker: WorkerProcess) -> None:
        worker._start = start_of(models / "tiny.gguf", api_key="wrong")
        status, _ = await worker.post("/tokenize", {"content": "x"})
        assert status == 401

    run(models / "tiny.gguf", test)


OWNER = """
import asyncio, sys
from kvant.runtime.server import loopback, workers
from kvant.runtime.server.start import Start
from kvant.runtime.server.workers import start_worker
async def main():
    worker = await start_worker(Start(path=sys.argv[1], name="t", api_key="", context=256, parallel=1, threads=1,
                                      http_threads=4), timeout_s=100)
    print(worker.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@needs_linux
def test_a_worker_ends_with_its_owner(models: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(models / "tiny.gguf")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    descriptor = os.pidfd_open(pid)
    try:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        import select

        assert select.select([descriptor], [], [], 60)[0], "the worker outlived its owner"
    finally:
        os.close(descriptor)


@needs_posix
def test_a_killed_worker_is_restarted_under_a_request(models: Path) -> None:
    async def test() -> None:
        plan = Scheduler(Settings(context=256, parallel=2, threads=1))
        file = DirectoryLibrary(models).find("tiny")
        async with plan.lease(file, caller="me") as lease:
            first = lease.worker.pid
            os.kill(first, signal.SIGKILL)
            status, body = await lease.worker.post("/tokenize", {"content": "Hello"})
            assert (status, bool(body["tokens"])) == (200, True)
            assert lease.worker.pid != first
        (loaded,) = plan.loaded()
        assert loaded.size_bytes > file.size_bytes
        await plan.aclose()

    asyncio.run(test())


@pytest.mark.parametrize("speculate", ["ngram", "draft"])
def test_speculation_gives_the_same_words(models: Path, speculate: str) -> None:
    answers = []
    body = {"prompt": "a b a b a b", "n_predict": 12, "temperature": 0, "ignore_eos": True}

    async def test(worker: WorkerProcess) -> None:
        answers.append((await worker.post("/completion", body))[1]["content"])

    run(models / "tiny.gguf", test)
    run(models / "tiny.gguf", test, speculate=speculate, draft=str(models / "tiny.gguf"))
    assert answers[0] == answers[1]


def test_an_engine_whose_loop_does_not_turn_is_not_healthy(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STALL_S", 0.0)
    words = " | ".join(f'"v{i}"' for i in range(6000))  # each turn compares all of them with all tokens

    async def test(worker: WorkerProcess) -> None:
        assert await worker.healthy()
        body = COMPLETION | {"stream": False, "grammar": f"root ::= {words}"}
        busy = asyncio.create_task(worker.post("/completion", body))
        while await worker.healthy():
            await asyncio.sleep(0)
        assert not busy.done()
        worker.kill()
        with pytest.raises(WorkerError):
            await busy

    run(models / "tiny.gguf", test)


@needs_linux
def test_a_process_that_cannot_be_started_leaves_no_directory(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError):
        asyncio.run(start_worker(start_of(models / "tiny.gguf"), timeout_s=100))
    assert list(tmp_path.iterdir()) == []


@needs_linux
def test_an_engine_that_sends_too_much_is_ended(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "EVENT_BYTES", 16)

    async def test(worker: WorkerProcess) -> None:
        with pytest.raises(WorkerError, match="the engine was ended, for it sent an event above the limit of 16 bytes"):
            [payload async for payload in worker.stream("/completion", COMPLETION)]
        assert not worker.alive

    run(models / "tiny.gguf", test)


def test_a_stuck_engine_that_nobody_waits_for_is_ended_and_who_came_later_is_innocent(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ABANDONED_S", 0.0)
    monkeypatch.setattr(workers, "SENT_S", 0.0)
    words = " | ".join(f'"v{i}"' for i in range(60_000))

    async def test(worker: WorkerProcess) -> None:
        body = COMPLETION | {"stream": False, "grammar": f"root ::= {words}"}
        busy = asyncio.create_task(worker.post("/completion", body))
        while not worker._open:
            await asyncio.sleep(0)
        turn, since = None, time.monotonic()
        while time.monotonic() < since + 0.5:  # the loop does not turn, but its client waits
            assert await worker.healthy()
            if worker._turn is not turn:
                turn, since = worker._turn, time.monotonic()
        late = asyncio.create_task(worker.post("/completion", COMPLETION | {"stream": False, "tools": []}))
        while len(worker._open) < 2:  # it is sent, behind the turn
            await asyncio.sleep(0)
        busy.cancel()
        await asyncio.wait([busy])
        while await worker.healthy():
            await asyncio.sleep(0)
        worker.kill()
        with pytest.raises(
            WorkerError, match=r"was ended, for it was stuck and nobody waited for what it did"
        ) as caught:
            await late
        assert caught.value.was_waiting
        assert not _may_have_ended_it({"tools": []}, caught.value)  # so it is asked again, of the next engine

    run(models / "tiny.gguf", test)
