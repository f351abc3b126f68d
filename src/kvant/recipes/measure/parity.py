"""Whether variants of a model, each in its own engine, read the same tokens and build the same prompts.

A variant whose tokenizer or chat template differs is another model to its users, whatever its weights are; formats
carry them along in different files, and engines read them with different programs. What counts is the model's own: of a
Hugging Face directory its tokenizer.json, read by the library that transformers uses, never a conversion of it.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from kvant.errors import EngineError, LimitError, MissingDependencyError, UnsupportedModelError
from kvant.evaluate.corpora import Corpus, corpus, text_file
from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.huggingface.tokenizer.words import by_name
from kvant.metadata import TokenType, Value
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.source import opened
from kvant.runtime.artifacts import engine_of, open_artifact
from kvant.runtime.engines.base import Artifact
from kvant.runtime.tokenizers import Conversation, Questions, Spoken, by_llama, by_tokenizer_json, rendered

PIECE_CHARACTERS = 1200
MAX_PIECES = 256
"""Pieces of the measured text that are compared, spread over it."""

MAX_ADDED = 48
"""Added tokens that are tried in texts of their own, spread over them."""

SHOWN_IDS = 4
SHOWN_CHARACTERS = 60

_USER = {"role": "user", "content": "Why is the sky blue?"}
CONVERSATIONS: tuple[Conversation, ...] = (
    (_USER,),
    ({"role": "system", "content": "Answer in one word."}, _USER),
    (_USER, {"role": "assistant", "content": "Scattering."}, {"role": "user", "content": "Of what?"}),
    ({"role": "user", "content": "  spaces \n\nand <|im_start|> \"quotes\" 'n' {{ braces }} 🙂\n"},),
    ({"role": "system", "content": ""}, _USER),
)

FACTS: Mapping[str, str] = {
    "tokenizer.ggml.tokens": "token texts",
    "tokenizer.ggml.token_type": "token types",
    "tokenizer.ggml.pre": "pre-tokenizer",
    "tokenizer.ggml.bos_token_id": "BOS",
    "tokenizer.ggml.eos_token_id": "EOS",
    "tokenizer.ggml.eot_token_id": "end of turn",
    "tokenizer.ggml.add_bos_token": "whether BOS is added",
    "tokenizer.ggml.add_eos_token": "whether EOS is added",
    "tokenizer.chat_template": "chat template",
}
"""Metadata that is compared beside tokens, and what it is called."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a variant first differs.

    Attributes:
        what: `tokens`, `tokens around a text`, `prompt`, `tokens of a prompt`, or one of `FACTS`.
        of: The text or the conversation, shortened; where in a list of tokens.
        theirs: What the base has from there on.
        ours: What the variant has.
    """

    what: str
    of: str
    theirs: str
    ours: str


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """How a variant's engine reads and prompts, against the base's.

    Attributes:
        path: The variant.
        engine: Its engine.
        truth: What it was compared with: `tokenizers` and its version, or an engine that read the base itself.
        n_texts: Texts compared.
        n_same_texts: Those with the same tokens.
        n_prompts: Conversations compared: those that one of the two templates, or both, made a prompt of.
        n_same_prompts: Those with the same prompt, in the same tokens.
        differences: The first of each kind.
        not_compared: Why nothing was compared; empty if it was.
    """

    path: str
    engine: str
    truth: str = ""
    n_texts: int = 0
    n_same_texts: int = 0
    n_prompts: int = 0
    n_same_prompts: int = 0
    differences: tuple[Difference, ...] = ()
    not_compared: str = ""

    @property
    def is_same(self) -> bool:
        """Whether everything was compared and nothing differs."""
        return not self.differences and not self.not_compared

    @property
    def compared(self) -> str:
        """What was compared, in words."""
        prompts = f" and {self.n_prompts} chat prompts" if self.n_prompts else ""
        return f"{self.n_texts} texts{prompts}"

    @property
    def differing(self) -> str:
        """How much of it differs, in words."""
        texts = f"{self.n_texts - self.n_same_texts} of {self.n_texts} texts"
        if not self.n_prompts:
            return texts
        return f"{texts} and {self.n_prompts - self.n_same_prompts} of {self.n_prompts} chat prompts"


def parity(
    variants: Sequence[Artifact | Path], *, against: Model | Path, text: Path | None = None, progress: Progress = SILENT
) -> list[Parity]:
    """Compare variants of any format with the model they were made from.

    Args:
        variants: GGUF files, MLX directories, directories of onnxruntime-genai, and what other engines run.
        against: The full-precision model, or where it is.
        text: A UTF-8 file to tokenize beside the odd texts; the bundled held-out half if None.
        progress: Told of variants.

    Raises:
        MissingDependencyError: An engine is not installed.
        EngineError: An engine cannot load a tokenizer.
        FormatError: A file is damaged.
    """
    base = Truth(against, corpus("default", "held-out") if text is None else text_file(text))
    progress.start("parity", len(variants), "variants")
    found = []
    for variant in variants:
        found.append(base.compare(variant))
        progress.advance("parity", 1)
    progress.finish("parity")
    return found


class Truth:
    """A model's own tokens and prompts, which variants are compared with.

    Args:
        against: The model, or its Hugging Face directory or GGUF file.
        text: What to tokenize beside the odd texts and the added tokens.

    Raises:
        EngineError: Its tokenizer cannot be loaded.
        FormatError: A file is damaged.
    """

    def __init__(self, against: Model | Path, text: Corpus) -> None:
        self._model = opened(against)
        self._texts = [*TEXTS.values(), *_added_texts(self._model), *_pieces(text)]
        self._prompts: dict[tuple[str | None, ...], list[str | None]] = {}
        self._spoken = _own(self._model, self._questions(self._model))

    def compare(self, variant: Artifact | Path) -> Parity:
        """Compare a variant of any format, by its own engine.

        Raises:
            MissingDependencyError: The engine is not installed.
            EngineError: It cannot load the tokenizer.
            FormatError: A file is damaged.
            LimitError: Its chat template takes more time, memory or text than one can need.
        """
        artifact = open_artifact(variant)
        if artifact.engine.speaks is None:
            raise EngineError(
                f"{artifact.path}: {artifact.engine.title} reads tokens, not texts: there is no tokenizer to compare. "
                "Compare the one that is used with it."
            )
        spoken = artifact.engine.speaks(artifact, self._questions(artifact.model))
        return _compared(artifact.path, self._texts, self._spoken, spoken, _facts(self._model, artifact.model))

    def try_compare(self, variant: Artifact | Path) -> Parity:
        """Compare a variant; where its engine cannot be asked, say why instead."""
        path = variant.path if isinstance(variant, Artifact) else variant
        try:
            return self.compare(variant)
        except (EngineError, LimitError, MissingDependencyError) as error:
            return Parity(path=str(path), engine="", truth=self._spoken.engine, not_compared=str(error))

    def _questions(self, model: Model | None) -> Questions:
        """Return what the engine of a model is asked; one that kvant does not read renders its prompts itself."""
        return Questions(texts=self._texts, conversations=CONVERSATIONS, prompts=lambda: self._rendered(model))

    def _rendered(self, model: Model | None) -> list[str | None]:
        """Return the conversations by a model's template, rendered once: a variant's is its original's as a rule."""
        template, names = _template(model) if model else (None, {"bos": "", "eos": ""})
        key = (template, *names.values())
        if key not in self._prompts:
            self._prompts[key] = [rendered(template, names, messages) for messages in CONVERSATIONS]
        return self._prompts[key]


def _own(model: Model, questions: Questions) -> Spoken:
    """Ask what is nearest to a model's source: its tokenizer.json, or the engine for its GGUF file."""
    home = model.origin or model.path
    if (home / "tokenizer.json").is_file():
        return by_tokenizer_json(home, questions)
    if engine_of(model.path).is_served:
        return by_llama(model.files[0], questions)
    with tempfile.TemporaryDirectory(
        prefix="kvant-"
    ) as scratch:  # tokenizer.model alone: its scores go over as they are
        file = Path(scratch) / "vocabulary.gguf"
        write_gguf(file, model.metadata, ())
        return by_llama(file, questions)


def _template(model: Model) -> tuple[str | None, dict[str, str]]:
    """A model's chat template, and the texts it may put into prompts."""
    template = model.get("tokenizer.chat_template")
    names = {role: model.special_text(role) or "" for role in ("bos", "eos")}
    return template if isinstance(template, str) else None, names


def _facts(base: Model, ours: Model | None) -> list[Difference]:
    """Compare what the files say of their tokenizers; those that kvant does not read say nothing in these words."""
    return [] if ours is None else facts_differ(base.metadata, ours.metadata)


def facts_differ(base: Mapping[str, Value], ours: Mapping[str, Value]) -> list[Difference]:
    """Compare what two files say of their tokenizers: keys that either has."""
    found = (_fact(key, name, base.get(key), ours.get(key)) for key, name in FACTS.items())
    return [difference for difference in found if difference is not None]


def _fact(key: str, name: str, theirs: Value | None, ours: Value | None) -> Difference | None:
    if theirs is None and ours is not None and (ours.value is False or (key.endswith(".pre") and _is_plain(ours))):
        return None  # states what goes without saying
    if theirs is None or ours is None:
        shown = ["none" if v is None else _stated(key, v) for v in (theirs, ours)]
        return None if theirs is ours else Difference(what=name, of="the file", theirs=shown[0], ours=shown[1])
    one, other = theirs.value, ours.value
    if key == "tokenizer.ggml.pre" and _same_pre(str(one), str(other)):
        return None
    if isinstance(one, bool | int | float | str) or isinstance(other, bool | int | float | str):
        if isinstance(one, str) and isinstance(other, str) and one != other:
            at = max(0, _first(one, other) - 10)
            return Difference(what=name, of=f"character {at}", theirs=_short(one[at:]), ours=_short(other[at:]))
        return None if one == other else Difference(what=name, of="the file", theirs=_short(one), ours=_short(other))
    a, b = (list(v.tolist()) if isinstance(v, np.ndarray) else list(v) for v in (one, other))
    if a == b:
        return None
    at = _first(a, b)
    return Difference(
        what=name, of=f"id {at}", theirs=f"{a[at : at + 1]} of {len(a)}"[:SHOWN_CHARACTERS],
        ours=f"{b[at : at + 1]} of {len(b)}"[:SHOWN_CHARACTERS],
    )  # fmt: skip


def _stated(key: str, value: Value) -> str:
    return "one" if key == "tokenizer.chat_template" else _short(value.value)


def _is_plain(pre: Value) -> bool:
    """Whether a pre-tokenizer is what files of SentencePiece name, where others name none."""
    return pre.value == "default"


def _short(value: object) -> str:
    return repr(value)[:SHOWN_CHARACTERS]


def _same_pre(one: str, other: str) -> bool:
    """Whether two names of pre-tokenizers stand for the same."""
    try:
        return one == other or by_name(one).acts_like(by_name(other))
    except UnsupportedModelError:
        return False


def _compared(
    path: Path, texts: Sequence[str], base: Spoken, ours: Spoken, facts: Sequence[Difference]
) -> Parity:  # fmt: skip
    same_texts = [a == b for a, b in zip(base.ids, ours.ids, strict=True)]
    rendered = [a is not None or b is not None for a, b in zip(base.prompts, ours.prompts, strict=True)]
    same_prompts = [a == b for a, b in zip(base.prompts, ours.prompts, strict=True)]
    same_ids = [a == b for a, b in zip(base.prompt_ids, ours.prompt_ids, strict=True)]
    differences = list(facts)
    if not all(same_texts):
        at = same_texts.index(False)
        differences.append(_of_tokens("tokens", repr(texts[at][:SHOWN_CHARACTERS]), base.ids[at], ours.ids[at]))
    if base.around != ours.around:
        differences.append(_of_tokens("tokens around a text", "'x'", base.around, ours.around))
    if not all(same_prompts):
        differences.append(_of_prompt(same_prompts.index(False), base, ours))
    elif not all(same_ids):
        at = same_ids.index(False)
        differences.append(
            _of_tokens("tokens of a prompt", _roles(at), base.prompt_ids[at] or [], ours.prompt_ids[at] or [])
        )
    return Parity(
        path=str(path), engine=ours.engine, truth=base.engine, n_texts=len(texts), n_same_texts=sum(same_texts),
        n_prompts=sum(rendered),
        n_same_prompts=sum(all(same) for same in zip(rendered, same_prompts, same_ids, strict=True)),
        differences=tuple(differences),
    )  # fmt: skip


def _of_tokens(what: str, of: str, one: Sequence[int], other: Sequence[int]) -> Difference:
    start = _first(one, other)
    return Difference(
        what=what, of=of, theirs=f"{list(one[start : start + SHOWN_IDS])} at {start} of {len(one)}",
        ours=f"{list(other[start : start + SHOWN_IDS])} of {len(other)}",
    )  # fmt: skip


def _of_prompt(at: int, base: Spoken, ours: Spoken) -> Difference:
    both = (base.prompts[at], ours.prompts[at])
    start = max(0, _first(*(p if p is not None else "" for p in both)) - 10)
    shown = ["none" if p is None else repr(p[start : start + SHOWN_CHARACTERS]) for p in both]
    return Difference(what="prompt", of=_roles(at), theirs=shown[0], ours=shown[1])


def _roles(at: int) -> str:
    return ", ".join(message["role"] for message in CONVERSATIONS[at])


def _first(one: Sequence[object], other: Sequence[object]) -> int:
    """Index of the first item that differs."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _added_texts(model: Model) -> Iterator[str]:
    """Texts with the tokens that are matched before the tokenizer proper: beside letters, spaces and line ends."""
    types, tokens = model.get("tokenizer.ggml.token_type"), model.get("tokenizer.ggml.tokens")
    if types is None or tokens is None:
        return
    added = np.flatnonzero(np.isin(np.asarray(types), (TokenType.CONTROL, TokenType.USER_DEFINED)))
    for number in added[:: max(1, -(-len(added) // MAX_ADDED))].tolist():
        token = tokens[number]  # type: ignore[index]
        yield f"a{token}b {token} c\n{token}\nd  {token}  {token}{token}e"


def _pieces(text: Corpus) -> list[str]:
    """A text in pieces that end where lines do, most of them."""
    pieces: list[str] = []
    rest = text.text
    at = 0
    while at < len(rest):
        cut = rest.rfind("\n", at + 1, at + PIECE_CHARACTERS) + 1 or at + PIECE_CHARACTERS
        pieces.append(rest[at:cut])
        at = cut
    return pieces[:: max(1, -(-len(pieces) // MAX_PIECES))]
