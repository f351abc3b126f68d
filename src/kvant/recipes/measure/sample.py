"""The same short prompt continued greedily by the original and by variants, by the engine: what figures mean."""

import unicodedata
from pathlib import Path

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.documents import JSON_ERRORS
from kvant.evaluate.baselogits import engine_name
from kvant.files import atomic_write, cache_dir
from kvant.recipes import cache
from kvant.runtime.process import EngineProcess

PROMPT = "Water boils at a lower temperature in the mountains because"
"""Plain prose that any language model has something to say to, and that has a right and a wrong continuation."""

TOKENS = 48
CONTEXT = 256


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What one variant said; control characters are stripped."""

    name: str
    text: str


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """The same prompt continued by the original and by variants.

    Attributes:
        prompt: The prompt.
        tokens: Most tokens of a continuation, each the likeliest one.
        original: Continuation of the full-precision model.
        variants: Continuations of variants.
    """

    prompt: str
    tokens: int
    original: str
    variants: tuple[Sample, ...]


def continuation(file: Path, key: str, *, threads: int) -> str:
    """Return how a model continues the prompt, or what is kept of it.

    Args:
        file: A GGUF file.
        key: Identity of its content, for the cache.
        threads: Threads of the engine.

    Raises:
        EngineError: The engine fails on the file.
    """
    found = kept_continuation(key)
    if found is None:
        found = generate(file, threads=threads)
        with atomic_write(_path(key), is_shared=True) as stored:
            stored.write(msgspec.json.encode(found))
    return found


def kept_continuation(key: str) -> str | None:
    """Return a continuation from the cache; None if it is not there or not readable."""
    try:
        return msgspec.json.decode(_path(key).read_bytes(), type=str)
    except (OSError, *JSON_ERRORS):
        return None


def generate(file: Path, *, threads: int, prompt: str = PROMPT, tokens: int = TOKENS) -> str:
    """Continue a prompt greedily, by at most so many tokens; an end token ends it.

    Raises:
        EngineError: The engine fails on the file.
    """
    with EngineProcess() as engine:
        engine.open(file, n_ctx=CONTEXT, n_threads=threads)
        read = [int(token) for token in engine.tokenize(prompt, add_special=True)][: CONTEXT - tokens]
        ends, made = engine.ends(), list[int]()
        while len(made) < tokens:
            token = int(np.argmax(engine.next_logits([*read, *made])))
            if token in ends:
                break
            made.append(token)
        return plain_text(b"".join(engine.pieces(made)))


def plain_text(data: bytes) -> str:
    """Decode UTF-8 and strip control and format characters; line breaks and tabs become spaces."""
    text = data.decode("utf-8", errors="replace")
    spaced = (" " if character in "\n\r\t" else character for character in text)
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def _path(key: str) -> Path:
    return cache_dir("samples") / f"{cache.digest('sample', __version__, engine_name(), PROMPT, TOKENS, key)}.json"


def as_lines(samples: Samples) -> list[str]:
    """Write samples for a terminal, one line each."""
    said = [("original", samples.original), *((sample.name, sample.text) for sample in samples.variants)]
    return [f'"{samples.prompt} ..." continued:', *(f"  {name}: {text.strip() or '(ends)'}" for name, text in said)]
