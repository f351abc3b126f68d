"""Calibration text without data: the model writes it itself.

openings ── a chat prompt, or a random token ──► the model goes on at temperature 1 ──► windows of tokens
                    ▲                                         │
                    └──────────── an end token ◄──────────────┘

Every token but the openings' is drawn from the model's own distribution, given all of its window before it. That is
why the token ids are kept and not a text: tokenizing the text again may merge or split what was drawn, and would
measure the model on inputs that it never produced.

The same model, engine and seed give the same windows on the same machine. Another processor adds floats in another
order and in time draws other tokens, so what is recorded is the hash of the tokens that were used, and `optimize`
writes them beside its output: a token file, `.npz`, which stands for them wherever a calibration text is asked for.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from kvant._version import __version__
from kvant.errors import FormatError, UnsupportedModelError
from kvant.evaluate.baselogits import engine_name
from kvant.evaluate.corpora import Corpus, Part
from kvant.evaluate.windows import Windows
from kvant.files import atomic_write, cache_dir
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes import cache
from kvant.recipes.measure.draw import draw
from kvant.runtime.process import EngineProcess
from kvant.runtime.template import render

GROUP = 32
"""Windows written side by side: on SmolLM2-135M that makes four times the tokens per second of one at a time."""

SUBJECTS = (
    "rivers", "a market in the morning", "prime numbers", "an old bridge", "the human heart", "bread", "trade by sea",
    "a lost letter", "sorting a list", "elections", "the night sky", "two friends who disagree", "a rainy journey",
    "electric motors", "bees", "learning to play the violin", "a small company", "volcanoes", "a robbery", "glass",
    "dates and calendars", "football", "memory", "a dream", "medicine in the desert", "chess", "contracts", "paint",
)  # fmt: skip
REQUESTS = (
    "Explain {} to a child.", "Write a short story about {}.", "What should everyone know about {}?",
    "Write a Python program that has to do with {}.", "List ten facts about {}.", "Write a dialogue about {}.",
    "Give me a table about {}.", "Write a news report about {}.", "Write a letter that mentions {}.",
    "Compare two opinions on {}.", "Write a C function, with comments, that could be used for {}.",
    "Ask me three questions about {}.", "Write a poem about {}.", "Write a JSON document that describes {}.",
)  # fmt: skip
LANGUAGES = (
    "", "", "", "", "", " Answer in French.", " Answer in Spanish.", " Answer in German.", " Answer in Chinese.",
    " Answer in Russian.", " Answer in Arabic.", " Answer in Portuguese.", " Answer in Japanese.", " Answer in Hindi.",
)  # fmt: skip
"""What is asked for after a request; nothing, so English, more often than any other."""

Opening = Callable[[np.random.Generator], list[int]]
"""Gives the tokens that a new text in a window begins with."""

_MARK = "kvant-writes-here"


def self_windows(
    model: Model, file: Path, identity: str, *, context: int, count: int, seed: int, threads: int = 2,
    progress: Progress = SILENT,
) -> tuple[Corpus, Windows]:  # fmt: skip
    """Let a model write windows of tokens, or take what it wrote before from the cache; an interrupted run goes on.

    Where there is a chat template, every other window holds answers to requests in it, domain `chat`. The others, and
    all without a template, begin with a random token after the start token, if the model wants one: domain `plain`.

    Args:
        model: The model, for its template.
        file: The GGUF that the engine runs.
        identity: Hash of the model.
        context: Tokens per window.
        count: Windows.
        seed: Of every choice.
        threads: Of the engine.
        progress: Told of tokens.

    Returns:
        The text, whose hashes are those of its tokens as int32, and the windows; domains alternate.

    Raises:
        EngineError: The engine cannot run the model.
    """
    template = model.get("tokenizer.chat_template")
    key = cache.digest("self", __version__, engine_name(), identity, template, context, seed)
    directory = cache_dir("self", key[:32])
    with EngineProcess() as engine:
        engine.open(file, n_ctx=context, n_threads=threads, vocab_only=True)
        kinds = openings(model, engine, progress)
        names = tuple(list(kinds)[window % len(kinds)] for window in range(count))
        groups = [range(at, min(at + GROUP, count)) for at in range(0, count, GROUP)]
        paths = [directory / f"{group.start}-{group.stop}.npy" for group in groups]
        waiting = [(group, path) for group, path in zip(groups, paths, strict=True) if not path.is_file()]
        progress.start("writing", sum(len(group) for group, _ in waiting) * context, "tokens")
        for group, path in waiting:
            engine.open(file, n_ctx=context, n_threads=threads, n_seq=len(group))
            chances = [np.random.default_rng([seed, window]) for window in group]
            rows = write_rows(engine, [kinds[names[window]] for window in group], chances, context, progress)
            with atomic_write(path, is_shared=True) as out:
                np.save(out, rows)
        progress.finish("writing")
        windows = Windows(tokens=np.concatenate([_read(path, context) for path in paths]), domains=names)
        return text_of(engine, windows, seed), windows


def openings(model: Model, engine: EngineProcess, progress: Progress = SILENT) -> dict[str, Opening]:
    """Return the ways in which the open model can be made to begin a text, by domain."""
    assert engine.opened is not None, "open comes first"
    words = [token for token, piece in enumerate(engine.pieces(range(engine.opened.n_vocab))) if piece]
    start = [engine.opened.bos] if engine.opened.add_bos else []
    kinds: dict[str, Opening] = {"plain": lambda chance: [*start, int(chance.choice(words))]}
    around = around_request(model, progress)
    if around is None:
        return kinds
    before, after = around
    bos = model.special_text("bos") or ""
    is_started = bool(bos) and before.startswith(bos)

    def chat(chance: np.random.Generator) -> list[int]:
        asked = str(chance.choice(REQUESTS)).format(chance.choice(SUBJECTS)) + str(chance.choice(LANGUAGES))
        ids = engine.tokenize(before + asked + after, add_special=not is_started, parse_special=True)
        return list(map(int, ids))

    return {"chat": chat, **kinds}


def around_request(model: Model, progress: Progress = SILENT) -> tuple[str, str] | None:
    """Return what a model's chat template puts before and after a request; None if it has none that can be used."""
    template = model.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return None
    bos, eos = (model.special_text(role) or "" for role in ("bos", "eos"))
    request = {"role": "user", "content": _MARK}
    try:
        parts = render(template, [request], bos_token=bos, eos_token=eos).split(_MARK)
    except UnsupportedModelError as error:
        progress.say(f"{error} Text is sampled without it.")
        return None
    return (parts[0], parts[1]) if len(parts) == 2 else None


def write_rows(
    engine: EngineProcess, begins: Sequence[Opening], chances: Sequence[np.random.Generator], context: int,
    progress: Progress = SILENT,
) -> np.ndarray:  # fmt: skip
    """Let the open model fill windows side by side.

    Args:
        engine: A process with the model open for as many sequences as there are windows.
        begins: How texts in each window begin; another begins after an end token.
        chances: Source of chance of each window.
        context: Tokens per window.
        progress: Told of tokens.

    Returns:
        Token ids, int32 [windows, context].
    """
    ends = engine.ends()
    rows: list[list[int]] = [[] for _ in begins]
    parts = [begin(chance)[:context] for begin, chance in zip(begins, chances, strict=True)]
    while any(parts):
        for row, part in zip(rows, parts, strict=True):
            row += part
        progress.advance("writing", sum(map(len, parts)))
        parts = [part if len(row) < context else [] for row, part in zip(rows, parts, strict=True)]
        grown = [index for index, part in enumerate(parts) if part]
        if not grown:
            break
        drawn = draw(engine.extend(parts), np.array([chances[index].random() for index in grown]))
        parts = [[] for _ in begins]
        for index, token in zip(grown, drawn.tolist(), strict=True):
            following = begins[index](chances[index]) if token in ends else []
            parts[index] = [token, *following][: context - len(rows[index])]
    return np.array(rows, np.int32)


def text_of(engine: EngineProcess, windows: Windows, seed: int) -> Corpus:
    """Return sampled windows as a text that people can read, with the hashes of its tokens."""
    used = np.unique(windows.tokens).tolist()
    pieces = dict(zip(used, engine.pieces(used), strict=True))
    parts = []
    for domain in dict.fromkeys(windows.domains):
        rows = windows.tokens[[name == domain for name in windows.domains]]
        text = "\n".join(b"".join(map(pieces.__getitem__, row)).decode("utf-8", "replace") for row in rows.tolist())
        parts.append(Part(domain=domain, text=text, sha256=hashlib.sha256(rows.tobytes()).hexdigest()))
    return Corpus(
        name="self", split=f"seed-{seed}", text="\n".join(part.text for part in parts),
        sha256=token_hash(windows), parts=tuple(parts),
    )  # fmt: skip


def write_tokens(path: Path, text: Corpus, windows: Windows) -> None:
    """Write windows as a token file: int32 tokens [windows, context], their domains, and what the text is called."""
    with atomic_write(path) as file:
        np.savez(file, tokens=windows.tokens, domains=np.array(windows.domains), name=text.name, split=text.split)


def read_tokens(path: Path, engine: EngineProcess, *, context: int) -> tuple[Corpus, Windows]:
    """Read a token file as `self_windows` gave it; `engine` has the model open whose tokens they are.

    Raises:
        FormatError: It is absent, damaged, or of another model or context.
    """
    assert engine.opened is not None, "open comes first"
    windows, name, split = load_tokens(path)
    if windows.context != context or windows.tokens.min() < 0 or windows.tokens.max() >= engine.opened.n_vocab:
        raise FormatError(
            f"{path}: windows of {windows.context} tokens up to {windows.tokens.max()} do not fit windows of {context} "
            f"and a vocabulary of {engine.opened.n_vocab}. Give the model they are of."
        )
    return dataclasses.replace(text_of(engine, windows, 0), name=name, split=split), windows


def load_tokens(path: Path) -> tuple[Windows, str, str]:
    """Read windows, name and split of a token file.

    Raises:
        FormatError: It is absent or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            tokens, domains = found["tokens"], tuple(map(str, found["domains"].tolist()))
            name, split = str(found["name"]), str(found["split"])
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise FormatError(f"{path}: is no token file ({error}). Give a .npz that kvant wrote.") from error
    if tokens.dtype != np.int32 or tokens.ndim != 2 or not tokens.size or len(tokens) != len(domains):
        raise FormatError(
            f"{path}: {tokens.dtype} {list(tokens.shape)} with {len(domains)} domains is not int32 [windows, tokens] "
            "with a domain each. Give a .npz that kvant wrote."
        )
    return Windows(tokens=tokens, domains=domains), name, split


def token_hash(windows: Windows) -> str:
    """Return the hash that stands for windows in locks and files: SHA-256 of their tokens as int32."""
    return hashlib.sha256(windows.tokens.tobytes()).hexdigest()


def _read(path: Path, context: int) -> np.ndarray:
    """Read one group of windows, int32 [windows, context]."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise FormatError(f"{path}: is damaged ({error}). Remove it.") from error
    if rows.dtype != np.int32 or rows.ndim != 2 or rows.shape[1] != context:
        raise FormatError(f"{path}: {rows.dtype} {list(rows.shape)} is not int32 [windows, {context}]. Remove it.")
    return np.asarray(rows)
