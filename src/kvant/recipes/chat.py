"""Talk with a model: a conversation, rendered by its chat template, continued token by token by the engine.

with Chat(chat_file(path)) as chat:
    answer = chat.ask("What is the capital of France?", on_text=print)
"""

import codecs
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import numpy as np

from kvant.errors import ValueRangeError
from kvant.files import cache_dir
from kvant.formats.gguf.kinds import check_kind
from kvant.formats.gguf.reader import read_gguf
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.convert import convert
from kvant.recipes.stops import Stops
from kvant.runtime import plaintext
from kvant.runtime.artifacts import engine_of
from kvant.runtime.plaintext import Controls, Disguise, Trusted
from kvant.runtime.process import EngineProcess
from kvant.runtime.sampling import Sampling, choose, generator
from kvant.runtime.template import render

DEFAULT_CONTEXT = 4096
CHUNK = 256
"""Prompt tokens read between two looks at whether to stop."""

Stop = Literal["end", "length", "stopped"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model answered, and how fast.

    Attributes:
        text: The answer.
        stop: Why it ended: at an end token, at the length asked for, or stopped from outside.
        n_prompt: Tokens of the conversation before it.
        n_tokens: Tokens of the answer.
        prompt_s: Seconds until its first token was chosen.
        generate_s: Seconds from there to its end.
        dropped_turns: Oldest messages left out because the context was full.
    """

    text: str
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
    files = sorted(p for p in source.iterdir() if p.is_file())
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = hashlib.sha256(repr((str(source.resolve()), facts)).encode()).hexdigest()[:16]
    path = cache_dir("run") / f"{source.resolve().name}-{key}-F16.gguf"
    if not path.is_file():
        progress.say(f"Converting {source} to F16 once; kept as {path}.")
        convert(source, path, to="gguf", type="F16", progress=progress)
    return path


class Chat:
    """A conversation with one model; use it as a context manager.

    Args:
        path: A GGUF file.
        system: What the model is told about its part; None for what its template says by itself.
        sampling: How to choose tokens.
        max_tokens: Most tokens of an answer.
        context: Tokens the conversation may have; None for what the model was trained for, at most DEFAULT_CONTEXT.
        raw: Continue texts as they are, without the chat template.
        threads: Threads of the engine.
        template: Chat template in place of the file's.
        stop: Texts that end an answer.
        trusted_system: Whether `system` comes from the model's author, and may hold control tokens.
        trust_prompt_tokens: Whether everything that is said may, and raw texts.

    Attributes:
        messages: The conversation so far, `{"role", "content"}` each, without the system message.

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
        sampling: Sampling | None = None,
        max_tokens: int = 1024,
        context: int | None = None,
        raw: bool = False,
        threads: int = 2,
        template: str | None = None,
        stop: Sequence[str] = (),
        trusted_system: bool = False,
        trust_prompt_tokens: bool = False,
    ) -> None:
        model = read_gguf(path)
        check_kind(model)
        trained = model.hyper("context_length", DEFAULT_CONTEXT)
        self.context = context or min(trained, DEFAULT_CONTEXT)
        if not 8 <= self.context <= 1 << 24 or max_tokens < 1:
            raise ValueRangeError(
                f"context {self.context}, max_tokens {max_tokens}: need at least 8 and 1 tokens. Choose larger ones."
            )
        self.path, self.system, self.max_tokens = path, system, max_tokens
        self._own_system = system if trusted_system else None
        self._trusts = trust_prompt_tokens
        self._controls = Controls.of(model)
        self.sampling = sampling or Sampling()
        self.messages: list[dict[str, str]] = []
        self._read: list[int] = []
        self.stop = tuple(stop)
        chosen = template or model.get("tokenizer.chat_template")
        self.template = chosen if isinstance(chosen, str) and not raw else None
        self._names = {role: special_text(model, role) for role in ("bos", "eos")}
        self._engine = EngineProcess()
        try:
            self._engine.open(path, n_ctx=self.context, n_threads=threads)
            self._ends = self._engine.ends()
        except BaseException:
            self._engine.close()
            raise

    def close(self) -> None:
        """End the engine's process."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages = []

    def ask(
        self,
        text: str,
        *,
        on_text: Callable[[str], object] = lambda _: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Say something and return the answer, which joins the conversation.

        Args:
            text: What the user says; without a template, the text to continue.
            on_text: Told every piece of the answer as it comes; never half a character.
            stopped: Asked between tokens; true ends the answer where it is.

        Raises:
            ValueRangeError: The message alone does not fit the context.
            UnsupportedModelError: The chat template refuses the conversation.
            EngineError: The engine failed.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            prompt, dropped = self._fitting_prompt()
            answer = self._continue(prompt, on_text, stopped, dropped)
        except BaseException:
            self.messages = before
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def _fitting_prompt(self) -> tuple[list[int], int]:
        """Return the conversation's tokens, without as many of its oldest turns as the context demands."""
        room = self.context - min(self.max_tokens, self.context // 4)
        dropped = 0
        while True:
            prompt = self._tokens(self.messages)
            if len(prompt) <= room or len(self.messages) == 1:
                break
            pair = 2 if len(self.messages) > 2 else 1
            self.messages = self.messages[pair:]
            dropped += pair
        if len(prompt) >= self.context:
            raise ValueRangeError(
                f"message: {len(prompt)} tokens do not fit the context of {self.context}."
                " Shorten it or raise --context."
            )
        return prompt, dropped

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        if self.template is None:
            text = "".join(message["content"] for message in messages)
            text = (self.system or "") + text
            return list(map(int, self._engine.tokenize(text, add_special=True, parse_special=self._trusts)))
        said: list[dict[str, str]] = list(messages)
        if self.system:
            kind = Trusted if self.system == self._own_system else dict
            said.insert(0, kind(role="system", content=self.system))
        disguise = None if self._trusts else Disguise.of(said, self._controls)
        said = disguise.hidden(said) if disguise else said
        text = render(self.template, said, bos_token=self._names["bos"], eos_token=self._names["eos"])
        has_bos = bool(self._names["bos"]) and text.startswith(self._names["bos"])
        if disguise:
            return plaintext.drive(plaintext.tokens(text, disguise, start=not has_bos), self._ids)
        return self._ids(plaintext.Ask(text, add_special=not has_bos, parse_special=True))

    def _ids(self, ask: plaintext.Ask) -> list[int]:
        ids = self._engine.tokenize(ask.text, add_special=ask.add_special, parse_special=ask.parse_special)
        return list(map(int, ids))

    def _next_logits(self, tokens: list[int]) -> np.ndarray:
        self._read = tokens
        return self._engine.next_logits(tokens)

    def _continue(
        self, prompt: list[int], on_text: Callable[[str], object], stopped: Callable[[], bool], dropped: int
    ) -> Answer:
        chance, decoder = generator(self.sampling), codecs.getincrementaldecoder("utf-8")("replace")
        room = min(self.max_tokens, self.context - len(prompt))
        made: list[int] = []
        pieces: list[str] = []
        stops = Stops(self.stop)
        stop: Stop = "length"
        start = first = time.perf_counter()
        for end in range(_same(self._read, prompt) + CHUNK, len(prompt), CHUNK):
            if stopped():
                break
            self._next_logits(prompt[:end])
        while len(made) < room:
            if stopped():
                stop = "stopped"
                break
            token = choose(self._next_logits(prompt + made), prompt + made, self.sampling, chance)
            first = first if made else time.perf_counter()
            if token in self._ends:
                stop = "end"
                break
            made.append(token)
            if piece := stops.feed(decoder.decode(self._engine.pieces([token])[0])):
                pieces.append(piece)
                on_text(piece)
            if stops.found:
                stop = "end"
                break
        if rest := stops.feed(decoder.decode(b"", final=True)) + stops.rest():
            pieces.append(rest)
            on_text(rest)
        done = time.perf_counter()
        return Answer(
            text="".join(pieces), stop=stop, n_prompt=len(prompt), n_tokens=len(made),
            prompt_s=first - start, generate_s=done - first, dropped_turns=dropped,
        )  # fmt: skip


def _same(a: list[int], b: list[int]) -> int:
    """Return how many first tokens two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def special_text(model: Model, role: str) -> str:
    """Return the text of a model's `bos` or `eos` token, or nothing where there is none."""
    tokens, number = model.get("tokenizer.ggml.tokens"), model.get(f"tokenizer.ggml.{role}_token_id")
    if isinstance(number, int) and hasattr(tokens, "__getitem__") and hasattr(tokens, "__len__"):
        return str(tokens[number]) if 0 <= number < len(tokens) else ""
    return ""
