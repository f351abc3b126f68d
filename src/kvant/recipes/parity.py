"""Whether variants of a model, each in its own engine, read the same tokens and build the same prompts.

A variant whose tokenizer or chat template differs is another model to its users, whatever its weights are; formats
carry them along in different files, and engines read them with different programs.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.evaluate.corpora import Corpus
from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.base import sniff
from kvant.formats.gguf.kinds import check_kind
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.onnx.decoder import is_decoder, read_decoder
from kvant.formats.open import open_model
from kvant.progress import SILENT, Progress
from kvant.recipes.chat import special_text
from kvant.recipes.evaluate import f32_file, measured_text
from kvant.runtime.tokenizers import Conversation, Spoken, by_llama, by_worker

PIECE_CHARACTERS = 1200
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


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a variant first differs.

    Attributes:
        what: `tokens` or `prompt`.
        of: The text or the conversation, shortened.
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
        n_texts: Texts compared.
        n_same_texts: Those with the same tokens.
        n_prompts: Conversations compared.
        n_same_prompts: Those with the same prompt.
        differences: The first of each kind.
    """

    path: str
    engine: str
    n_texts: int
    n_same_texts: int
    n_prompts: int
    n_same_prompts: int
    differences: tuple[Difference, ...]

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def parity(
    variants: Sequence[Path], *, against: Path, text: Path | None = None, progress: Progress = SILENT
) -> list[Parity]:
    """Compare variants of any format with the model they were made from.

    Args:
        variants: GGUF files, MLX directories, directories of onnxruntime-genai.
        against: The full-precision model.
        text: A UTF-8 file to tokenize beside the odd texts; the bundled held-out half if None.
        progress: Told of variants.

    Raises:
        MissingDependencyError: An engine is not installed.
        EngineError: An engine cannot load a tokenizer.
        FormatError: A file is damaged.
    """
    texts = [*TEXTS.values(), *_pieces(measured_text(text))]
    base = _spoken(f32_file(Path(against), progress=progress)[0], texts)
    progress.start("parity", len(variants), "variants")
    found = []
    for variant in variants:
        found.append(_compared(Path(variant), texts, base, _spoken(Path(variant), texts)))
        progress.advance("parity", 1)
    progress.finish("parity")
    return found


def _spoken(path: Path, texts: Sequence[str]) -> Spoken:
    if is_decoder(path):
        read_decoder(path)
        return by_worker("genai", path, texts, CONVERSATIONS)
    if sniff(path) != "gguf":
        open_model(path)
        return by_worker("mlx", path, texts, CONVERSATIONS)
    model = read_gguf(path)
    check_kind(model)
    template = model.get("tokenizer.chat_template")
    names = {role: special_text(model, role) for role in ("bos", "eos")}
    return by_llama(path, template if isinstance(template, str) else None, names, texts, CONVERSATIONS)


def _compared(path: Path, texts: Sequence[str], base: Spoken, ours: Spoken) -> Parity:
    same_texts = [a == b for a, b in zip(base.ids, ours.ids, strict=True)]
    same_prompts = [a == b for a, b in zip(base.prompts, ours.prompts, strict=True)]
    differences = []
    if not all(same_texts):
        at = same_texts.index(False)
        one, other = base.ids[at], ours.ids[at]
        start = _first(one, other)
        differences.append(
            Difference(
                what="tokens", of=repr(texts[at][:SHOWN_CHARACTERS]),
                theirs=f"{one[start : start + SHOWN_IDS]} at {start} of {len(one)}",
                ours=f"{other[start : start + SHOWN_IDS]} of {len(other)}",
            )
        )  # fmt: skip
    if not all(same_prompts):
        at = same_prompts.index(False)
        prompts = [p if p is not None else "" for p in (base.prompts[at], ours.prompts[at])]
        start = max(0, _first(*prompts) - 10)
        shown = [
            "none" if p is None else repr(p[start : start + SHOWN_CHARACTERS])
            for p in (base.prompts[at], ours.prompts[at])
        ]
        roles = ", ".join(message["role"] for message in CONVERSATIONS[at])
        differences.append(Difference(what="prompt", of=roles, theirs=shown[0], ours=shown[1]))
    return Parity(
        path=str(path), engine=ours.engine, n_texts=len(texts), n_same_texts=sum(same_texts),
        n_prompts=len(CONVERSATIONS), n_same_prompts=sum(same_prompts), differences=tuple(differences),
    )  # fmt: skip


def _first(one: Sequence[object], other: Sequence[object]) -> int:
    """Index of the first item that differs."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _pieces(text: Corpus) -> list[str]:
    """A text in pieces that end where lines do, most of them."""
    pieces: list[str] = []
    rest = text.text
    while rest:
        cut = rest.rfind("\n", 1, PIECE_CHARACTERS) + 1 or PIECE_CHARACTERS
        pieces.append(rest[:cut])
        rest = rest[cut:]
    return pieces
