"""Talk with a model: a conversation, continued by the engine's server as the gateway has it continued.

with Chat(chat_file(path)) as chat:
    answer = chat.ask("What is the capital of France?", on_text=print)
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

import msgspec

from kvant.errors import (
    ApiError,
    ContextExceededError,
    EngineError,
    TemplateRefusedError,
    UnsupportedModelError,
    ValueRangeError,
)
from kvant.files import cache_dir
from kvant.formats.gguf.companions import Projector, projector_for, projectors_beside, read_projector
from kvant.formats.gguf.kinds import check_generates, check_kind
from kvant.formats.gguf.reader import read_gguf
from kvant.generate import asking, prompt
from kvant.generate.chunks import Usage
from kvant.generate.engine import tokenize
from kvant.generate.media import MAX_BYTES, Kind, Media, check_number, check_pixels, content_of, of_bytes
from kvant.generate.plain import plain
from kvant.generate.sampling import PARAMETERS, RUN_DEFAULTS, checked, engine_options
from kvant.generate.templates import abilities
from kvant.progress import SILENT, Progress
from kvant.recipes.convert.convert import convert
from kvant.recipes.convert.projector import write_for_chat
from kvant.recipes.convert.upstream import is_upstreams
from kvant.recipes.source import open_model
from kvant.runtime.artifacts import engine_of
from kvant.runtime.bounded import Bounded
from kvant.runtime.plaintext import Controls, Trusted
from kvant.runtime.sandbox import spawn
from kvant.runtime.server.start import Start
from kvant.runtime.server.workers import start_worker

DEFAULT_CONTEXT = 4096
LOAD_S = 3600.0
"""Seconds that loading may take; Ctrl-C ends it before."""

POLL_S = 0.05
"""Seconds between two looks at whether to stop."""

HTTP_THREADS = 4
Stop = Literal["end", "length", "stopped"]
P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered, and how fast.

    Attributes:
        text: The answer.
        thinking: What it thought before, where its template tells that apart.
        stop: Why it ended: at an end token, at the length asked for, or stopped from outside.
        n_prompt: Tokens of the conversation before it.
        n_tokens: Tokens of the answer.
        prompt_s: Seconds until its first token was there.
        generate_s: Seconds from there to its end.
        dropped_turns: Oldest messages left out because the context was full.
    """

    text: str
    thinking: str = ""
    stop: Stop
    n_prompt: int
    n_tokens: int
    prompt_s: float
    generate_s: float
    dropped_turns: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated per second, the first not counted."""
        return (self.n_tokens - 1) / self.generate_s if self.n_tokens > 1 and self.generate_s > 0 else 0.0


def chat_file(source: Path, *, progress: Progress = SILENT) -> Path:
    """Return the GGUF file to chat with: the source itself, or an F16 conversion of a directory, kept in the cache.

    Raises:
        FormatError: The source is damaged or of no known format.
        UnsupportedModelError: The directory's architecture or tokenizer is not supported.
    """
    if engine_of(source).is_served:
        return source
    if is_upstreams(source):
        return open_model(source, progress=progress).files[0]
    files = sorted(p for p in source.iterdir() if p.is_file())
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = hashlib.sha256(repr((str(source.resolve()), facts)).encode()).hexdigest()[:16]
    path = cache_dir("run") / f"{source.resolve().name}-{key}-F16.gguf"
    if not path.is_file():
        model = open_model(
            source, progress=progress
        )  # what cannot be converted is refused before it is said that it will be
        progress.say(f"Converting {source} to F16 once; kept as {path}.")
        convert(model, path, to="gguf", type="F16", progress=progress)
        for remark in write_for_chat(source, path, progress=progress):
            progress.say(remark)
    return path


class Chat:
    """A conversation with one model; use it as a context manager.

    Args:
        path: A GGUF file.
        system: What the model is told about its part; None for what its template says by itself.
        sampling: How to choose tokens, by the names of `generate.sampling`, over `RUN_DEFAULTS`.
        max_tokens: Most tokens of an answer.
        context: Tokens the conversation may have; None for what the model was trained for, at most DEFAULT_CONTEXT.
        raw: Continue texts as they are, without the chat template.
        threads: Threads of the engine.
        template: Chat template in place of the file's.
        trusted_system: Whether `system` comes from the model's author, and may hold control tokens.
        trust_prompt_tokens: Whether everything that is said may, and raw texts.
        projector: What lets the model see or hear; None for a model that reads text alone.

    Attributes:
        messages: The conversation so far, in OpenAI's form, without the system message.
        sampling: See above; `set` changes it.

    Raises:
        FormatError: The file is damaged.
        EngineError: The engine cannot load it.
        ValueRangeError: A limit is out of range.
    """

    def __init__(
        self,
        path: Path,
        *,
        system: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        max_tokens: int = 1024,
        context: int | None = None,
        raw: bool = False,
        threads: int = 2,
        template: str | None = None,
        trusted_system: bool = False,
        trust_prompt_tokens: bool = False,
        projector: Projector | None = None,
    ) -> None:
        model = read_gguf(path)
        check_kind(model)
        check_generates(model)
        trained = model.hyper("context_length", DEFAULT_CONTEXT)
        self.context = context or min(trained, DEFAULT_CONTEXT)
        if not 8 <= self.context <= 1 << 24 or max_tokens < 1:
            raise ValueRangeError(
                f"context {self.context}, max_tokens {max_tokens}: need at least 8 and 1 tokens. Choose larger ones."
            )
        self.path, self.system, self.max_tokens = path, system, max_tokens
        self.projector, self._attached = projector, list[Media]()
        self._own_system = system if trusted_system else None
        self._trusts = trust_prompt_tokens
        self._controls = Controls.of(model)
        self.sampling = _in_range({**RUN_DEFAULTS, **(sampling or {})})
        self.messages: list[dict[str, Any]] = []
        own = model.get("tokenizer.chat_template")
        chosen = template or own
        self.template = chosen if isinstance(chosen, str) and not raw else None
        self._given = template if self.template is not None else None
        self._turns = _Alone()
        self._loop = asyncio.new_event_loop()
        start = Start(
            path=str(path), name=path.stem, api_key="", context=self.context, parallel=1, threads=threads,
            http_threads=HTTP_THREADS, template=self._given, address_space_bytes=spawn.address_space_bytes(),
            projector=str(projector.path) if projector else None,
        )  # fmt: skip
        try:
            self._worker = self._run(start_worker(start, timeout_s=LOAD_S))
        except BaseException:
            self._loop.close()
            raise

    def close(self) -> None:
        """End the engine's process."""
        if not self._loop.is_closed():
            self._turns.close()
            self._run(self._worker.stop())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages = []

    def set(self, name: str, value: float) -> None:
        """Choose tokens otherwise from now on.

        Raises:
            ValueRangeError: No such way, or a value out of its range.
        """
        changed = _in_range({name: value})
        if name not in changed or name == "num_predict" or PARAMETERS[name].engine is None:
            raise ValueRangeError(f"setting: {name!r} is not known. Type /? for those that are.")
        self.sampling = self.sampling | changed

    def attach(self, kind: Kind, files: Sequence[Path]) -> None:
        """Show pictures or play sounds with what is said next.

        Args:
            kind: `image` or `audio`.
            files: Their files.

        Raises:
            ValueRangeError: The model cannot take them, or one is none or too large.
        """
        able = self.projector is not None and (self.projector.sees if kind == "image" else self.projector.hears)
        if files and (not able or self.template is None):
            why = "it was started without a projector for them" if not able else "it continues texts, by no template"
            raise ValueRangeError(f"{files[0]}: {self.path.name} takes no {kind} files: {why}. {_HOW}")
        self._attached = read_media(kind, files, self._attached)

    def ask(
        self,
        text: str,
        *,
        on_text: Callable[[str], object] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Say something, with what is attached, and return the answer, which joins the conversation.

        Args:
            text: What the user says; without a template, the text to continue.
            on_text: Told every piece of the answer as it comes, thinking between `<think>` marks; never half a
                character.
            stopped: Asked again and again; true ends the answer where it is.

        Raises:
            ValueRangeError: The message alone does not fit the context.
            UnsupportedModelError: The chat template refuses the conversation.
            EngineError: The engine failed.
        """
        before = list(self.messages)
        attached, self._attached = self._attached, []
        self.messages.append({"role": "user", "content": content_of([*attached, text])})
        try:
            answer = self._run(self._ask(on_text, stopped))
        except ApiError as error:
            self.messages, self._attached = before, attached
            raise self._worded(error) from error
        except BaseException:
            self.messages = before
            raise
        said = {"role": "assistant", "content": answer.text}
        self.messages.append(said | ({"reasoning_content": answer.thinking} if answer.thinking else {}))
        return answer

    def _run(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Wait for something; an interrupt ends it first."""
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self._loop.run_until_complete(task)
            raise

    async def _ask(self, on_text: Callable[[str], object], stopped: Callable[[], bool]) -> Answer:
        reader = _Reader(on_text, stopped)

        async def watch() -> None:
            while not stopped():
                await asyncio.sleep(POLL_S)

        async def read() -> int:
            asked, dropped = await self._fitting()
            begun = await asking.ask(asked, self._worker, self._turns, return_progress=True)
            async with contextlib.aclosing(begun):
                await reader.read(begun)
            return dropped

        reading, watching = asyncio.ensure_future(read()), asyncio.ensure_future(watch())
        try:
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, watching):
                task.cancel()
            done = await asyncio.gather(reading, watching, return_exceptions=True)
        if isinstance(done[0], BaseException) and not isinstance(done[0], asyncio.CancelledError):
            raise done[0]
        return reader.answer(done[0] if isinstance(done[0], int) else 0)

    async def _fitting(self) -> tuple[prompt.Prompt, int]:
        """Return what the engine is asked, without as many of its oldest turns as the context demands."""
        room = self.context - min(self.max_tokens, self.context // 4)
        dropped = 0
        while True:
            asked = await self._prompt()
            n_tokens = await asking.count(asked, self._worker, self._turns)
            if n_tokens <= room or len(self.messages) == 1:
                break
            pair = 2 if len(self.messages) > 2 else 1
            self.messages = self.messages[pair:]
            dropped += pair
        if n_tokens >= self.context:
            raise ContextExceededError(n_tokens, self.context)
        return asked, dropped

    async def _prompt(self) -> prompt.Prompt:
        sampling = engine_options(self.sampling, {"num_predict": self.max_tokens})
        if self.template is None:
            text = (self.system or "") + "".join(message["content"] for message in self.messages)
            tokens = await tokenize(self._worker, text, special=True, parse=self._trusts)
            return prompt.Text(text=tokens, sampling=sampling)
        said: list[dict[str, Any]] = list(self.messages)
        if self.system:
            kind = Trusted if self.system == self._own_system else dict
            said.insert(0, kind(role="system", content=self.system))
        chat = prompt.Chat(messages=said, sampling=sampling, template=self._given)
        if self._trusts:
            return chat
        thinks = "thinking" in abilities(self.template)
        return plain(chat, self._controls, thinks=thinks, by_engine=chat.by_engine(self._worker))

    def _worded(self, error: ApiError) -> Exception:
        if isinstance(error, ContextExceededError):
            return ValueRangeError(
                f"message: {error.n_tokens} tokens do not fit the context of {error.n_context}."
                " Shorten it or raise --context."
            )
        if isinstance(error, TemplateRefusedError) or error.param == "template":
            return UnsupportedModelError(f"chat {error}" if str(error).startswith("template") else str(error))
        return ValueRangeError(str(error)) if error.status < 500 else EngineError(str(error))


def read_media(kind: Kind, files: Sequence[Path], before: Sequence[Media] = ()) -> list[Media]:
    """Return pictures or sounds with those that were there before.

    Raises:
        ValueRangeError: One is none or too large, or they are too many.
    """
    made = list(before)
    try:
        made += [of_bytes(kind, _bounded(file, kind), str(file)) for file in files]
        check_number(made)
        check_pixels(made)
    except ApiError as error:
        raise ValueRangeError(str(error)) from None
    return made


_HOW = "Give --mmproj FILE, and a model with a chat template."


def projector_of(path: Path, given: Path | None, *, sees: bool = False, hears: bool = False) -> Projector:
    """Return the projector that was given, or the one that belongs to a model.

    Args:
        path: The model's file.
        given: The projector's; None for the one beside the model.
        sees: Whether it must take pictures.
        hears: Whether it must take sounds.

    Raises:
        UnsupportedModelError: There is none, no telling which, or it does not take what it must.
        FormatError: What was given is damaged, or no projector.
    """
    found = (
        read_projector(given)
        if given is not None
        else projector_for(path, read_gguf(path).hyper("embedding_length", 0))
    )
    if found is not None and (sees > found.sees or hears > found.hears):
        what = "pictures" if sees > found.sees else "sounds"
        raise UnsupportedModelError(f"{found.path}: takes no {what}. Leave them out, or give another: --mmproj FILE")
    if found is None:
        beside = [file.name for file in projectors_beside(path)]
        there = f"none of {', '.join(beside[:8])} beside it fits" if beside else "there is no mmproj-*.gguf beside it"
        raise UnsupportedModelError(
            f"{path}: pictures and sounds need the model's projector, and {there}. Give it: --mmproj FILE"
        )
    return found


def _bounded(file: Path, kind: Kind) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES[kind] + 1)
    except OSError as error:
        raise ValueRangeError(f"{file}: cannot be read ({error.strerror}). Give a picture or a sound.") from None


class _Alone:
    """Has bounded work done at once: nobody else is here."""

    def __init__(self) -> None:
        self._bounded = Bounded(n=1)

    async def run(self, work: Callable[Concatenate[Bounded, P], ResultT], *args: P.args, **more: P.kwargs) -> ResultT:
        return await asyncio.to_thread(partial(work, self._bounded, *args, **more))

    def close(self) -> None:
        self._bounded.close()


class _Reader:
    """Reads an answer as it comes, until somebody wants it stopped."""

    def __init__(self, on_text: Callable[[str], object], stopped: Callable[[], bool]) -> None:
        self._on_text, self._stopped = on_text, stopped
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._stop: Stop = "stopped"
        self._usage: Usage | None = None
        self._n = self._n_prompt = 0
        self._begun = time.perf_counter()
        self._first = 0.0

    async def read(self, begun: asking.Begun[Any]) -> None:
        """Read until the end."""
        async for piece in begun.pieces():
            if piece.progress:
                self._n_prompt = piece.progress.total
            if piece.text or piece.reasoning:
                self._take(piece.text, piece.reasoning)
            self._usage = piece.usage or self._usage
            if piece.finish:
                self._stop = "length" if piece.finish == "length" else "end"
            elif self._stopped():
                return

    def _take(self, text: str, thought: str) -> None:
        self._n += 1
        self._first = self._first or time.perf_counter()
        if thought:
            self._on_text(thought if self._thoughts else f"<think>\n{thought}")
            self._thoughts.append(thought)
        if text:
            self._on_text(f"\n</think>\n\n{text}" if self._thoughts and not self._texts else text)
            self._texts.append(text)

    def answer(self, dropped: int) -> Answer:
        """Return what was read."""
        done = time.perf_counter()
        usage = self._usage or Usage(self._n_prompt, self._n)
        first = self._first or done
        return Answer(
            text="".join(self._texts), thinking="".join(self._thoughts), stop=self._stop, n_prompt=usage.prompt_tokens,
            n_tokens=usage.completion_tokens, prompt_s=first - self._begun, generate_s=done - first,
            dropped_turns=dropped,
        )  # fmt: skip


def _in_range(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are known.

    Raises:
        ValueRangeError: One is out of its range.
    """
    try:
        return checked(options)
    except ApiError as error:
        raise ValueRangeError(str(error)) from None
