import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kvant.errors import ModelTooLargeError, QueueFullError, WorkerError
from kvant.serve import scheduler as module
from kvant.serve.library import ModelFile
from kvant.serve.scheduler import Scheduler, batch_for
from kvant.serve.sizing import Size
from serving import MB, FakeEngines, model_file, scheduler, turns

A, B, C = model_file("a"), model_file("b"), model_file("c")


def run(test: Callable[[FakeEngines], Awaitable[None]]) -> None:
    """Run a test on an event loop of its own; one that waits for ever fails."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test(FakeEngines())

    asyncio.run(bounded())


class Holder:
    """A request that holds its lease until it is told to end."""

    def __init__(self, plan: Scheduler, file: ModelFile, caller: str = "me", **options: float) -> None:
        self.got, self.end = asyncio.Event(), asyncio.Event()
        self.pid = 0
        self.task = asyncio.create_task(self._hold(plan, file, caller, options))

    async def _hold(self, plan: Scheduler, file: ModelFile, caller: str, options: dict[str, float]) -> None:
        async with plan.lease(file, caller=caller, **options) as lease:  # type: ignore[arg-type]
            self.pid = lease.worker.pid
            self.got.set()
            await self.end.wait()

    async def finish(self) -> None:
        self.end.set()
        await self.task


def names(plan: Scheduler) -> list[str]:
    return sorted(model.file.name for model in plan.loaded())


def test_a_model_is_loaded_once_and_stays() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        for _ in range(3):
            async with plan.lease(A, caller="me") as lease:
                assert (await lease.worker.post("/x", {"n": 1}))[1]["n"] == 1
        assert len(engines.started) == 1
        (loaded,) = plan.loaded()
        assert (loaded.file.name, loaded.in_use, loaded.context) == ("a", 0, 8192)
        assert loaded.expires_at is not None
        await plan.aclose()
        assert plan.loaded() == []
        assert not engines.started[0].alive

    run(test)


def test_requests_that_come_while_a_model_loads_share_it() -> None:
    async def test(engines: FakeEngines) -> None:
        engines.gate.clear()
        plan = scheduler(engines, parallel=4)
        holders = [Holder(plan, A, str(i)) for i in range(4)]
        await plan.settled(lambda: plan.waiting().get("a") == 4)
        engines.gate.set()
        for holder in holders:
            await holder.got.wait()
        assert len(engines.started) == 1
        assert plan.running() == {"a": 4}
        for holder in holders:
            await holder.finish()
        await plan.aclose()

    run(test)


def test_a_slow_load_does_not_hold_up_requests_for_another_model() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        async with plan.lease(A, caller="me"):
            pass
        engines.gate.clear()
        slow = Holder(plan, B)
        await turns()
        async with plan.lease(A, caller="me") as lease:
            assert lease.worker.alive
        assert not slow.got.is_set()
        engines.gate.set()
        await slow.got.wait()
        await slow.finish()
        await plan.aclose()

    run(test)


def test_callers_take_turns() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, parallel=1)
        first = Holder(plan, A, "greedy")
        await first.got.wait()
        order: list[str] = []

        async def ask(caller: str) -> None:
            async with plan.lease(A, caller=caller):
                order.append(caller)

        tasks = [asyncio.create_task(ask(c)) for c in ("greedy", "greedy", "greedy", "modest", "other")]
        await plan.settled(lambda: plan.waiting()["a"] == 5)
        await first.finish()
        await asyncio.gather(*tasks)
        assert order == ["greedy", "modest", "other", "greedy", "greedy"]
        await plan.aclose()

    run(test)


def test_idle_models_make_room_the_one_that_expires_first_going_first() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, max_ram_bytes=250 * MB)
        async with plan.lease(A, caller="me", keep_alive=-1):
            pass
        async with plan.lease(B, caller="me", keep_alive=100):
            pass
        async with plan.lease(C, caller="me"):
            assert names(plan) == ["a", "c"]
        assert ("b", "evicted") in engines.events
        await plan.aclose()

    run(test)


def test_a_model_in_use_is_never_evicted_and_what_waits_for_its_memory_comes_before_later_requests() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, max_ram_bytes=150 * MB, parallel=4)
        busy = Holder(plan, A)
        await busy.got.wait()
        waiting = Holder(plan, B)
        await plan.settled(lambda: plan.waiting().get("b") == 1)
        later = Holder(plan, A)  # a slot of A is free, but B has waited longer
        await plan.settled(lambda: plan.waiting()["a"] == 1)
        assert engines.started[0].alive
        await busy.finish()
        await waiting.got.wait()
        assert not later.got.is_set()
        assert names(plan) == ["b"]
        await waiting.finish()
        await later.got.wait()
        await later.finish()
        await plan.aclose()

    run(test)


def test_a_model_too_large_even_alone_is_refused_with_figures() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, max_ram_bytes=50 * MB)
        with pytest.raises(ModelTooLargeError, match=r"'a': needs 100.0 MB .* limit of 50.0 MB") as caught:
            async with plan.lease(A, caller="me"):
                pass
        assert caught.value.limit_bytes == 50 * MB
        assert engines.started == []

    run(test)


def test_a_smaller_context_needs_no_reload_and_a_larger_one_waits_until_the_model_is_idle() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        busy = Holder(plan, A, context=1000)
        await busy.got.wait()
        async with plan.lease(A, caller="me", context=500) as lease:
            assert lease.worker.context == 1024
        larger = Holder(plan, A, context=2000)
        await plan.settled(lambda: plan.waiting()["a"] == 1)
        await busy.finish()
        await larger.got.wait()
        assert [worker.context for worker in engines.started] == [1024, 2048]
        await larger.finish()
        async with plan.lease(A, caller="me", context=500):
            pass
        assert len(engines.started) == 2
        await plan.aclose()

    run(test)


def test_a_text_to_be_read_at_once_reloads_a_model_that_cannot() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        for batch in (0, 512, 3000, 4000, 513):
            async with plan.lease(A, caller="me", batch=batch):
                pass
        assert len(engines.started) == 2  # 4096 at once does for all that follow
        with pytest.raises(ModelTooLargeError, match=r"read 65536 at once.*Send shorter texts"):
            async with scheduler(engines, max_ram_bytes=100 * MB + 60_000).lease(A, caller="me", batch=60_000):
                pass
        await plan.aclose()

    run(test)


def test_a_batch_has_few_sizes() -> None:
    assert [batch_for(n) for n in (0, 1, 512, 513, 1024, 1025, 8192)] == [0, 0, 0, 1024, 1024, 2048, 8192]


def test_a_context_is_at_most_what_the_model_was_trained_for() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        async with plan.lease(model_file("short", trained=512), caller="me", context=100_000) as lease:
            assert lease.worker.context == 512
        await plan.aclose()

    run(test)


def test_contexts_that_are_asked_for_come_to_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        read: list[str] = []
        size = plan._size

        def counted(file: ModelFile, wanted: int | None, batch: int) -> Size:
            read.append(file.name)
            return size(file, wanted, batch)

        monkeypatch.setattr(plan, "_size", counted)
        for context in [*range(1, 1025), *range(8000, 9000), 10**9]:
            assert (await plan.sizing(A, context)).extent.context <= 8192
        assert len(read) == 5  # 256, 512, 768, 1024, 8192
        await plan.sizing(A, 256)
        monkeypatch.setattr(module, "MAX_SIZES", 3)
        for i in range(10):
            await plan.sizing(model_file(f"m{i}"), 256)
            await plan.sizing(A, 256)
        assert len(plan._sizes) == 3
        assert len(read) == 15  # what is asked for again and again is not read again

    run(test)


def test_a_changed_file_is_loaded_again() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        for digest in ("0", "1", "1"):
            async with plan.lease(model_file("a", digest=digest), caller="me"):
                pass
        assert len(engines.started) == 2
        await plan.aclose()

    run(test)


@pytest.mark.parametrize(("keep_alive", "stays"), [(0, False), (0.01, False), (-1, True)])
def test_keep_alive(keep_alive: float, stays: bool) -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        async with plan.lease(A, caller="me", keep_alive=keep_alive):
            assert names(plan) == ["a"]
        if stays:
            await turns()
            assert plan.loaded()[0].expires_at is None
        else:
            await plan.settled(lambda: names(plan) == [])
            assert ("a", "expired") in engines.events
        await plan.aclose()

    run(test)


def test_unload_waits_for_requests_in_flight() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        holder = Holder(plan, A, keep_alive=0)
        await holder.got.wait()
        await plan.unload("a")
        assert engines.started[0].alive
        await holder.finish()
        await plan.settled(lambda: names(plan) == [])
        async with plan.lease(A, caller="me"):
            pass
        await plan.unload("a")
        assert not engines.started[1].alive
        await plan.unload("never heard of")
        await plan.aclose()

    run(test)


def test_a_full_queue_refuses_the_greediest_caller_and_says_when_to_come_back() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, parallel=1, max_queue=2)
        busy = Holder(plan, A, "greedy")
        await busy.got.wait()
        greedy = [Holder(plan, A, "greedy") for _ in range(2)]
        await plan.settled(lambda: plan.waiting()["a"] == 2)
        with pytest.raises(QueueFullError, match=r"queue: 2 requests wait already") as caught:
            async with plan.lease(A, caller="greedy"):
                pass
        assert caught.value.retry_after_s >= 1
        modest = Holder(plan, A, "modest")
        with pytest.raises(QueueFullError):
            await greedy[1].task
        assert plan.waiting() == {"a": 2}
        await busy.finish()
        for holder in (greedy[0], modest):
            await holder.got.wait()
            await holder.finish()
        await plan.aclose()

    run(test)


def test_a_cancelled_request_leaves_the_queue_and_frees_its_slot() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, parallel=1)
        holder = Holder(plan, A)
        await holder.got.wait()
        waiting = Holder(plan, A)
        await plan.settled(lambda: plan.waiting()["a"] == 1)
        waiting.task.cancel()
        await plan.settled(lambda: plan.waiting()["a"] == 0)
        holder.task.cancel()
        await plan.settled(lambda: plan.running()["a"] == 0)
        async with plan.lease(A, caller="me"):
            pass
        await plan.aclose()

    run(test)


@pytest.mark.parametrize("part", ["grammar", "json_schema", "response_format", "tools"])
def test_what_may_have_ended_its_engine_does_not_end_another_one(part: str) -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        for _ in range(2):
            async with plan.lease(A, caller="me") as lease:
                engines.started[-1].fails_after = 0
                n_started = len(engines.started)
                with pytest.raises(WorkerError, match="crashed"):
                    await lease.worker.post("/x", {part: "x"})
                assert len(engines.started) == n_started
            async with plan.lease(A, caller="me") as lease:
                engines.started[-1].fails_after = 0
                with pytest.raises(WorkerError, match="crashed"):
                    _ = [payload async for payload in lease.worker.stream("/x", {part: "x"})]
        await plan.aclose()

    run(test)


def test_a_crash_before_the_answer_is_retried_once_in_a_new_process() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        async with plan.lease(A, caller="me") as lease:
            engines.started[0].fails_after = 0
            status, body = await lease.worker.post("/x", {})
            assert (status, body["pid"]) == (200, engines.started[1].pid)
            engines.started[1].fails_after = 0
            with pytest.raises(WorkerError, match="crashed"):
                await lease.worker.post("/x", {})
        assert engines.events.count(("a", "crashed")) >= 1
        await plan.aclose()
        assert plan.running() == {"a": 0}

    run(test)


@pytest.mark.parametrize("fails_after", [0, 1])
def test_a_stream_is_begun_again_only_if_nothing_of_it_was_passed_on(fails_after: int) -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        seen: list[bytes] = []

        async def read() -> None:
            async with plan.lease(A, caller="me") as lease:
                engines.started[0].fails_after = fails_after
                async for payload in lease.worker.stream("/x", {}):
                    seen.append(payload)  # noqa: PERF401 - what came before the error counts

        if fails_after:
            with pytest.raises(WorkerError):
                await read()
            assert len(seen) == 1
        else:
            await read()
            assert [payload.split(b":")[1] for payload in seen] == [b"0", b"1", b"2"]
        async with plan.lease(A, caller="me") as lease:
            assert (await lease.worker.get("/health"))[0] == 200
        await plan.aclose()

    run(test)


def test_a_model_that_cannot_be_loaded_fails_those_who_wait_and_others_go_on() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        async with plan.lease(B, caller="me"):
            pass
        engines.error = WorkerError("model 'a': the engine said no.", name="a")
        for _ in range(2):
            with pytest.raises(WorkerError, match="said no") as caught:
                async with plan.lease(A, caller="me"):
                    pass
        assert caught.value.retry_after_s >= 1
        assert names(plan) == ["b"]
        engines.error = None
        async with plan.lease(A, caller="me"):
            assert names(plan) == ["a", "b"]
        await plan.aclose()

    run(test)


def test_repeated_crashes_are_restarted_later_and_later() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        known = []
        for _ in range(3):
            async with plan.lease(A, caller="me") as lease:
                crashed = engines.started[-1]
                crashed.kill()
                assert lease.worker.pid == crashed.pid
            await plan.settled(lambda: names(plan) == [])
            known.append(plan._known["a"].failures)
        assert known == [1, 2, 3]
        async with plan.lease(A, caller="me"):
            pass
        assert plan._known["a"].failures == 0
        await plan.aclose()

    run(test)


def test_a_worker_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvant.serve.scheduler.HEALTH_EVERY_S", 0.001)

    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines)
        async with plan.lease(A, caller="me"):
            engines.started[0].is_healthy = False
            await engines.started[0].ended.wait()
        await plan.settled(lambda: ("a", "crashed") in engines.events)
        await plan.aclose()

    run(test)


def test_closing_lets_answers_end_and_refuses_the_rest() -> None:
    async def test(engines: FakeEngines) -> None:
        plan = scheduler(engines, parallel=1)
        holder = Holder(plan, A)
        await holder.got.wait()
        waiting = Holder(plan, A)
        await plan.settled(lambda: plan.waiting()["a"] == 1)
        closing = asyncio.create_task(plan.aclose(drain_s=50))
        with pytest.raises(QueueFullError, match="shutting down"):
            await waiting.task
        with pytest.raises(QueueFullError, match="shutting down"):
            async with plan.lease(B, caller="me"):
                pass
        assert engines.started[0].alive
        await holder.finish()
        await closing
        assert not engines.started[0].alive

    run(test)


def test_closing_while_a_model_loads_gives_the_load_up() -> None:
    async def test(engines: FakeEngines) -> None:
        engines.gate.clear()
        plan = scheduler(engines)
        holder = Holder(plan, A)
        await plan.settled(lambda: plan.sizes() != {})
        await plan.aclose()
        with pytest.raises(QueueFullError):
            await holder.task
        assert plan.sizes() == {}

    run(test)
