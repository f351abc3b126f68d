"""What people write stays text: only a chat template may make control tokens.

A prompt is one text in which `<|im_end|>` ends a turn, wherever it came from. So before a template is rendered, every
place where a string of the conversation spells a control token is hidden behind characters of Unicode's private use
area, as many as it has, of which the conversation has none: no template trims, splits or escapes them, and lengths stay
the same. In the rendered text, control tokens are then the template's own. Stretches between them in which something
was hidden are tokenized as text; all others as ever, so that a conversation that spells none costs one look at it.

    disguise = Disguise.of(conversation, controls)      # None: nothing to hide
    rendered = render(template, disguise.hidden(conversation))
    ids = drive(tokens(rendered, disguise, start=True), tokenize)

A conversation is a list of messages, or a tuple of one and of what else a template is given. Of a message, `role` alone
is left as it is: templates compare it. In tools, schemas and arguments `role` is a name like any other.

Control tokens are those of type control and unknown, as in llama.cpp's tokenizer without `parse_special` and in
transformers with `split_special_tokens`: tokens that a vocabulary merely adds (`<think>`, Gemma's line breaks) are text
there too. Source: llama.cpp `llama-vocab.cpp` (`tokenizer_st_partition`).
"""

import bisect
import functools
import itertools
import re
import secrets
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvant.errors import LimitError
from kvant.metadata import TokenType
from kvant.model import Model

CONTROL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL)

MAX_CONTROLS = 1 << 16
MAX_SPELLINGS, MAX_PLACES = 1024, 4096
"""Of one conversation. A message that spells something costs its engine a request or two more."""

MAX_NESTING = 24
MAX_TAIL = 256
"""Characters of a control token that may be spelled by several strings together."""

PRIVATE_FIRST, PRIVATE_COUNT = 0xE000, 6400
"""Unicode's private use area in the basic plane."""

JOINERS = "\u2060\u200d\u200c\u200b\ufeff"
"""Characters that are not seen; see `joined`."""

# What llama.cpp takes for control tokens whatever type a file gives them. Source: `llama_vocab::impl::load`.
ALWAYS_CONTROL = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>",
    "<｜end▁of▁sentence｜>", "<|end_of_text|>", "<end_of_utterance>", "<|return|>", "<|call|>", "<|flush|>",
    "<|calls|>",
    "<eos>", "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "<|fim_suffix|>", "<fim-suffix>",
    "<fim_suffix>", "<SUF>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|fim_pad|>", "<fim-pad>",
    "<fim_pad>", "<PAD>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<|file_sep|>", "<|fim_sep|>",
)  # fmt: skip
REASONING = frozenset({"<think>", "</think>", "[THINK]", "[/THINK]", "<thinking>", "</thinking>"})
"""Marks around a model's thinking, which templates look for in what the assistant said before."""

_PRIVATE = re.compile("[\ue000-\uf8ff]")
_PRIVATE_RUN = re.compile("([\ue000-\uf8ff])\\1*")

_CODE = r"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}"
_ESCAPES = (re.compile(rf'\\(?:{_CODE}|["\\/bfnrt])'), re.compile(rf'\\(?:{_CODE}|["/])'))
"""JSON's escapes; and those that are left where a backslash before them is no escape, as in texts that are not JSON."""


class Trusted(dict[str, Any]):
    """A message of the operator's, which may hold control tokens."""


class Controls:
    """The control tokens of a vocabulary, as texts.

    Args:
        texts: Their texts.

    Attributes:
        eats: Those whose engine was asked whether they take the white space to their left (False) or right away.

    Raises:
        LimitError: There are more than any model has.
    """

    def __init__(self, texts: Collection[str]) -> None:
        self.texts = frozenset(text for text in texts if text.strip())
        if len(self.texts) > MAX_CONTROLS:
            raise LimitError(
                f"tokenizer: {len(self.texts)} control tokens exceed the limit of {MAX_CONTROLS}. Use another model."
            )
        self._pattern = re.compile(_trie(sorted(self.texts), 0)) if self.texts else None
        self._short = [text for text in self.texts if len(text) <= MAX_TAIL]
        self._starts = frozenset(text[:n] for text in self._short for n in range(1, len(text)))
        firsts = "".join(sorted({re.escape(text[0]) for text in self._short}))
        self._first = re.compile(f"[{firsts}]") if firsts else None
        self.longest = max(map(len, self._short), default=0)
        self.eats: dict[tuple[str, bool], bool] = {}

    @classmethod
    def of(cls, model: Model) -> "Controls":
        """Return the control tokens of a model; a file without a vocabulary has none."""
        tokens, types = model.get("tokenizer.ggml.tokens"), model.get("tokenizer.ggml.token_type")
        if not isinstance(tokens, Sequence):
            return cls(())
        marked = np.asarray(types if types is not None else (), np.int64).ravel()[: len(tokens)]
        texts = {str(tokens[int(index)]) for index in np.flatnonzero(np.isin(marked, CONTROL_TYPES))}
        return cls(texts | (set(ALWAYS_CONTROL) & set(tokens)))

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where a text spells control tokens, from left to right, the longest at each place; in linear time."""
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                yield match.span()

    def spelled(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the same, and what spells them once JSON's escapes are read, which templates do."""
        if "\\" not in text:
            yield from self.spans(text)
            return
        found = list(self.spans(text))
        for escape in _ESCAPES:
            reading = _Reading(text, escape)
            found += [(reading.place(a), reading.place(b)) for a, b in self.spans(reading.text)]
        yield from _merged(found)

    def tail(self, text: str) -> str:
        """Return the longest end of a text with which a control token begins that is not whole there."""
        if self._first is None:
            return ""
        near = text[-self.longest :]
        places = (match.start() for match in self._first.finditer(near))
        return next((near[at:] for at in places if near[at:] in self._starts), "")

    def completed(self, tails: Collection[str], heads: Collection[str]) -> bool:
        """Whether one of the texts that begin so could complete a control token that begins with one of the tails."""
        ends: set[str] = set()
        for text in self._short:
            begun = next((n for n in range(1, len(text)) if text[:n] in tails), len(text))
            ends.update(text[at:] for at in range(begun, len(text)))
        return bool(ends) and any(head[:n] in ends for head in heads for n in range(1, len(head) + 1))


def _trie(texts: Sequence[str], depth: int) -> str:
    """Return a pattern that matches the longest of texts in one pass; the texts are sorted and differ."""
    if depth > MAX_NESTING:
        return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    branches = []
    for _, group in itertools.groupby(texts, key=lambda text: text[0]):
        same = list(group)
        common = _common(same)
        rest = [text[len(common) :] for text in same if len(text) > len(common)]
        ends = len(rest) < len(same)
        inner = f"(?:{_trie(rest, depth + 1)}){'?' if ends else ''}" if rest else ""
        branches.append(re.escape(common) + inner)
    return "|".join(branches)


def _common(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


class _Reading:
    """A text with its escapes read once, and where each of its characters was written.

    Args:
        text: What was written.
        escape: Which escapes are read.
    """

    def __init__(self, text: str, escape: re.Pattern[str]) -> None:
        parts, last, size = [], 0, 0
        self._read, self._written = [0], [0]  # where escapes end in either text
        for match in escape.finditer(text):
            parts += [text[last : match.start()], _unescaped(match[0])]
            size += match.start() - last + 1
            last = match.end()
            self._read.append(size)
            self._written.append(last)
        self.text = "".join([*parts, text[last:]])

    def place(self, at: int) -> int:
        """Return where the character at an index of the text was written."""
        before = bisect.bisect_right(self._read, at) - 1
        return self._written[before] + at - self._read[before]


def _unescaped(escape: str) -> str:
    """Return the one character that an escape stands for."""
    if escape[1] != "u":
        return {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}.get(escape[1], escape[1])
    first = int(escape[2:6], 16)
    return chr(0x10000 + (first - 0xD800) * 0x400 + int(escape[8:], 16) - 0xDC00) if len(escape) > 6 else chr(first)


def _merged(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield spans from left to right, those that overlap as one."""
    begin = end = 0
    for a, b in sorted(spans):
        if a >= end:
            if end:
                yield begin, end
            begin = a
        end = max(end, b)
    if end:
        yield begin, end


@dataclass(frozen=True)
class Disguise:
    """Which spellings of control tokens a conversation has, and the character that stands for each; see `of`.

    Attributes:
        controls: The model's.
        marks: Spellings and their characters.
        tails: Spellings that are only begun.
    """

    controls: Controls
    marks: dict[str, str]
    tails: frozenset[str]

    @classmethod
    def of(cls, value: Any, controls: Controls) -> "Disguise | None":
        """Look through a conversation: messages, tools, whatever a template is given.

        Args:
            value: Messages, or a tuple that begins with them; what is `Trusted` in it is left out.
            controls: The model's.

        Returns:
            None if no string of it spells a control token, alone or together with another one.

        Raises:
            LimitError: It spells them in more ways than anybody would.
        """
        found: dict[str, None] = {}
        tails: set[str] = set()
        places = 0
        for text, kept in _strings(value):
            for a, b in controls.spelled(text):
                places += 1
                if text[a:b] not in kept:
                    found[text[a:b]] = None
                if places > MAX_PLACES or len(found) > MAX_SPELLINGS:
                    raise LimitError(
                        f"messages: spell control tokens {places} times in {len(found)} ways, above the limits of"
                        f" {MAX_PLACES} and {MAX_SPELLINGS}. Leave them out."
                    )
            if tail := controls.tail(text):
                tails.add(tail)
        if tails:
            heads = {text[: controls.longest] for text, _ in _strings(value)}
            tails = tails if controls.completed(tails, heads) else set()
        found.update(dict.fromkeys(sorted(tails)))
        if not found:
            return None
        used = {char for text, _ in _strings(value) for char in _PRIVATE.findall(text)}
        first = secrets.randbelow(PRIVATE_COUNT)
        free = (chr(PRIVATE_FIRST + (first + step) % PRIVATE_COUNT) for step in range(PRIVATE_COUNT))
        unused = [char for char in free if char not in used]
        if len(unused) < len(found):
            raise LimitError("messages: use up Unicode's private characters. Leave some out.")
        return cls(controls, dict(zip(found, unused, strict=False)), frozenset(tails))

    def hidden(self, value: Any) -> Any:
        """Return a conversation with what spells control tokens hidden."""
        return _mapped(value, lambda text, kept: self._replaced(text, kept, self._mark))

    def joined(self, value: Any, joiner: str) -> Any:
        """Return a conversation in which a character that is not seen keeps control tokens from being spelled.

        For an engine that is sent a conversation and no tokens. `joiner` is to be taken out of its answer.
        """

        def split(text: str) -> str:
            escape = _ESCAPES[0].match(text)
            first = escape.end() if escape else 1
            return text[:first] + joiner + text[first:]

        def apart(text: str, kept: Collection[str]) -> str:
            text = self._replaced(text, kept, split)
            for _ in range(self.controls.longest):  # what is left of one token may be another one
                if all(text[a:b] in kept for a, b in self.controls.spelled(text)):
                    break
                text = self._replaced(text, kept, split)
            return text

        return _mapped(value, apart)

    def restored(self, text: str) -> str:
        """Return a rendered text with everything hidden as it was written; a part of it, where a template cut it."""
        originals = self._originals

        def original(run: re.Match[str]) -> str:
            if run[1] not in originals:
                return run[0]
            times, rest = divmod(len(run[0]), len(originals[run[1]]))
            return originals[run[1]] * times + originals[run[1]][:rest]

        return _PRIVATE_RUN.sub(original, text)

    def hides(self, text: str) -> bool:
        """Whether something is hidden in a rendered text."""
        return any(char in self._originals for char in _PRIVATE.findall(text))

    @functools.cached_property
    def _originals(self) -> dict[str, str]:
        return {mark: original for original, mark in self.marks.items()}

    def _mark(self, text: str) -> str:
        return self.marks[text] * len(text)

    def _replaced(self, text: str, kept: Collection[str], replace: Callable[[str], str]) -> str:
        spans = [(a, b) for a, b in self.controls.spelled(text) if text[a:b] not in kept]
        tail = self.controls.tail(text) if self.tails else ""
        if tail in self.tails and tail and (not spans or spans[-1][1] <= len(text) - len(tail)):
            spans.append((len(text) - len(tail), len(text)))
        parts, last = [], 0
        for start, end in spans:
            parts += [text[last:start], replace(text[start:end])]
            last = end
        return "".join(parts) + text[last:] if spans else text


def _strings(value: Any) -> Iterator[tuple[str, Collection[str]]]:
    """Yield the strings of a conversation, keys too, each with the control tokens that it may spell."""
    messages, *beside = value if isinstance(value, tuple) else (value,)
    waiting: list[tuple[Any, Collection[str]]] = [(item, ()) for item in beside]
    for message in messages if isinstance(messages, list) else (messages,):
        if _is_message(message, messages):
            pairs = [pair for pair in message.items() if pair[0] != "role"]
            waiting += [(part, _kept(message)) for pair in pairs for part in pair]
        else:
            waiting.append((message, ()))
    while waiting:
        item, kept = waiting.pop()
        if isinstance(item, str):
            yield item, kept
        elif isinstance(item, Trusted):
            continue
        elif isinstance(item, dict):
            waiting += [(part, kept) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            waiting += [(part, kept) for part in item]


Change = Callable[[str, Collection[str]], str]


def _mapped(value: Any, change: Change) -> Any:
    """Return a conversation with its strings changed; see `_strings`."""
    messages, *beside = value if isinstance(value, tuple) else (value,)
    made: Any
    if isinstance(messages, list):
        made = [
            _message(item, change) if _is_message(item, messages) else _changed(item, change, ()) for item in messages
        ]
    else:
        made = _changed(messages, change, ())
    return [made, *_changed(beside, change, ())] if isinstance(value, tuple) else made


def _is_message(item: Any, messages: Any) -> bool:
    return isinstance(messages, list) and isinstance(item, dict) and not isinstance(item, Trusted)


def _kept(message: dict[str, Any]) -> Collection[str]:
    return REASONING if message.get("role") == "assistant" else ()


def _message(message: dict[str, Any], change: Change) -> dict[str, Any]:
    kept = _kept(message)
    rest = {key: item for key, item in message.items() if key != "role"}
    changed: dict[str, Any] = _changed(rest, change, kept)
    return {"role": message["role"], **changed} if "role" in message else changed


def _changed(value: Any, change: Change, kept: Collection[str]) -> Any:
    if isinstance(value, str):
        return change(value, kept)
    if isinstance(value, Trusted):
        return value
    if isinstance(value, dict):
        return {
            change(key, kept) if isinstance(key, str) else key: _changed(item, change, kept)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_changed(item, change, kept) for item in value]
    return value


def joiner_for(value: Any) -> str | None:
    """Return a character that is not seen and that a conversation does not use; None if it uses all of them."""
    texts = [text for text, _ in _strings(value)]
    return next((char for char in JOINERS if not any(char in text for text in texts)), None)


# Tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """A text whose tokens are needed.

    Attributes:
        text: The text.
        add_special: Put the start token first, as the model wants it.
        parse_special: Make control tokens of what spells them.
    """

    text: str
    add_special: bool
    parse_special: bool


Asking = Generator[Ask, Sequence[int], list[int]]


def tokens(rendered: str, disguise: Disguise, *, start: bool) -> Asking:
    """Tokenize a rendered conversation in which something is hidden; see `drive`.

    Args:
        rendered: What the template made of the disguised conversation.
        disguise: Of it.
        start: Put the start token first, as the model wants it.

    Returns:
        Token ids, those that the whole text would have if what was hidden spelled no control tokens.
    """
    ids: list[int] = []
    run, before = "", ""
    eats, known = disguise.controls.eats, dict[str, list[int]]()
    bare, full = yield from _ends(start=start)
    at = 0
    spans = [*disguise.controls.spans(rendered), (len(rendered), len(rendered))]
    for begin, end in spans:
        stretch, after = rendered[at:begin], rendered[begin:end]
        if disguise.hides(stretch):
            if run not in known:  # what stands between two turns is mostly the same
                known[run] = yield from _run(run)
            ids += known[run]
            text = disguise.restored(stretch)
            if before and text[:1].isspace() and (yield from _eats(before, eats, right=True)):
                text = text.lstrip()
            if after and text[-1:].isspace() and (yield from _eats(after, eats, right=False)):
                text = text.rstrip()
            if text:
                ids += yield Ask(text, False, False)
            run = after
        else:
            run += stretch + after
        at, before = end, after
    ids += yield from _run(run)
    return [*bare, *ids, *full]


def _run(text: str) -> Asking:
    return list((yield Ask(text, False, True))) if text else []


def _ends(*, start: bool) -> Generator[Ask, Sequence[int], tuple[list[int], list[int]]]:
    """Return the tokens that the model wants before and after a text."""
    if not start:
        return [], []
    full = list((yield Ask("a", True, False)))
    bare = list((yield Ask("a", False, False)))
    at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:at], full[at + len(bare) :]


def _eats(control: str, known: dict[tuple[str, bool], bool], *, right: bool) -> Generator[Ask, Sequence[int], bool]:
    """Whether a control token takes the white space beside it away, as Phi-3's do; asked once of a model."""
    if (control, right) not in known:
        spaced = list((yield Ask(control + " \na" if right else "a \n" + control, False, True)))
        bare = list((yield Ask(control + "a" if right else "a" + control, False, True)))
        known[control, right] = spaced == bare
    return known[control, right]


def drive(asking: Asking, tokenize: Callable[[Ask], Sequence[int]]) -> list[int]:
    """Return what asking for tokens comes to."""
    step = advance(asking)
    while isinstance(step, Ask):
        step = advance(asking, tokenize(step))
    return step


def advance(asking: Asking, answer: Sequence[int] | None = None) -> Ask | list[int]:
    """Return what is asked for next, or what all of it came to.

    Args:
        asking: What asks.
        answer: Tokens of what it asked for last; None at first.
    """
    try:
        return next(asking) if answer is None else asking.send(answer)
    except StopIteration as stop:
        ids: list[int] = stop.value
        return ids
