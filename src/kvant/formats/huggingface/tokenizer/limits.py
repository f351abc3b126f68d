"""What the engine's tokenizer does otherwise than the source's, said in a sentence each, or refused.

Source: llama-vocab.cpp `llama_vocab::impl::tokenize`, `tokenizer_st_partition`, `llm_tokenizer_spm`,
`llm_tokenizer_bpe`; the `tokenizers` library, whose ids count. Both are asked in tests/parity/test_tokenizer_parity.py.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.tokenizer.vocabulary import META, AddedToken
from kvant.formats.huggingface.tokenizer.words import PreTokenizer
from kvant.metadata import TokenType

PHI3_EXEMPT = ("<unk>", "<s>", "<|endoftext|>")
"""Tokens of a model named Phi-3 after which the engine leaves white space."""

PHI3_TOKENS = frozenset({*PHI3_EXEMPT, "</s>"})
"""Tokens that the engine looks up in a model named Phi-3: it does not load one that lacks any."""

PHI3 = re.compile(r"(phi)-?(3)", re.IGNORECASE)
_SPOKEN_PHI3 = re.compile(r"(phi)[ _](3)(?!\d)", re.IGNORECASE)

MASK = "[MASK]"
"""The token that swallows the white space before it in a model that the engine knows by name as ModernBERT."""

MODERN_BERT = re.compile(r"(modern)-(bert)", re.IGNORECASE)
_SPOKEN_MODERN_BERT = re.compile(r"(modern)[ _]?(bert)", re.IGNORECASE)

_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
_SHOWN = 6


def is_phi3(name: str, tokens: Collection[str]) -> bool:
    """Whether the engine lets special tokens swallow the white space after them in a model of this name."""
    return PHI3.search(name) is not None and set(tokens) >= PHI3_TOKENS


def engine_name(
    name: str, added: Iterable[AddedToken], tokens: Sequence[str], types: Sequence[int]
) -> tuple[str, list[str]]:
    """Spell a model's name so that the engine's special tokens swallow white space as the source's do.

    llama.cpp lets all special tokens but a few swallow what follows them if `general.name` holds "phi-3" or "phi3",
    and none otherwise; else "modern-bert" lets `[MASK]` swallow what stands before it. There is no key for either, and
    these are all that it asks of a name (llama-vocab.cpp `llama_vocab::impl::load`, b11549).

    Args:
        name: The model's name.
        added: Its added tokens.
        tokens: Its vocabulary.
        types: Their types.

    Returns:
        The name to write, and what must be said.
    """
    added = list(added)
    by_name = {t for t, kind in zip(tokens, types, strict=True) if kind in _SPECIAL_TYPES or t == "</s>"}
    by_name -= set(PHI3_EXEMPT)
    wanted = {token.content for token in added if token.rstrip}
    strips = set(tokens) >= PHI3_TOKENS and len(by_name ^ wanted) < len(wanted)
    swallowed, kept = (by_name - wanted, wanted - by_name) if strips else (set(), wanted)
    spelled = name
    if strips and not PHI3.search(name):
        spelled = _SPOKEN_PHI3.sub(r"\1-\2", name)
        spelled = spelled if PHI3.search(spelled) else f"{name} (phi-3)"
    elif not strips and PHI3.search(name):
        spelled = PHI3.sub(r"\1 \2", name)
    said = []
    if spelled != name and (not strips or spelled.endswith("(phi-3)")):
        how = "does" if strips else "does not"
        said.append(
            f"general.name is written {spelled!r}: the engine lets special tokens swallow the white space after them "
            f"by that name, and this tokenizer {how}."
        )
    spelled, more = _name_for_mask(spelled, any(t.content == MASK and t.lstrip for t in added), is_phi3=strips)
    said += more
    if swallowed:
        said.append(f"White space after {_listed(swallowed)} is swallowed, which tokenizer.json keeps.")
    if kept:
        said.append(f"White space after {_listed(kept)} is kept, which tokenizer.json lets them swallow.")
    return spelled, said


def _name_for_mask(name: str, swallows: bool, *, is_phi3: bool) -> tuple[str, list[str]]:
    """Spell a name so that `[MASK]` swallows the white space before it, or does not."""
    if swallows and is_phi3:
        return name, [f"White space before {MASK!r} is kept, which tokenizer.json lets it swallow."]
    if swallows == (MODERN_BERT.search(name) is not None) or is_phi3:
        return name, []
    if swallows:
        spelled = _SPOKEN_MODERN_BERT.sub(r"\1-\2", name)
        spelled = spelled if MODERN_BERT.search(spelled) else f"{name} (modern-bert)"
    else:
        spelled = MODERN_BERT.sub(r"\1 \2", name)
    how = "does" if swallows else "does not"
    return spelled, [
        f"general.name is written {spelled!r}: the engine lets {MASK} swallow the white space before it by that name, "
        f"and this tokenizer {how}."
    ]


def flag_remarks(added: Iterable[AddedToken], normalizer: Any) -> Iterator[str]:
    """Say which added tokens match otherwise than the engine matches them."""
    added = list(added)
    before = [token.content for token in added if token.lstrip and token.content != MASK]  # see `engine_name`
    if before:
        yield f"White space before {_listed(before)} is kept, which tokenizer.json lets them swallow."
    words = [token.content for token in added if token.single_word]
    if words:
        yield f"{_listed(words)} match inside words, too; tokenizer.json lets them match whole words only."
    prepends = any(step.get("type") == "Prepend" for step in steps_of(normalizer, "normalizers"))
    changed = [token.content for token in added if token.normalized and (prepends or META in token.content)]
    if changed:
        yield (
            f"{_listed(changed)} match text as it is; tokenizer.json lets them match after its normalizer, with the "
            f"space before them."
        )


def byte_level_remarks(tokenizer: Mapping[str, Any], pre: PreTokenizer) -> Iterator[str]:
    """Say what the engine's BPE over bytes does otherwise.

    Raises:
        UnsupportedModelError: Pieces are written in a way that the engine's merges cannot have.
    """
    model = tokenizer["model"]
    check_model(model)
    yield from _dropout(model)
    if any(step.get("add_prefix_space") for step in steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers")):
        yield (
            "tokenizer.json puts a space before a text and after special tokens (add_prefix_space); llama.cpp does not "
            "for this kind of tokenizer, so that first words get other tokens."
        )
    if bool(model.get("ignore_merges", False)) != pre.ignore_merges:
        ours, theirs = ("takes", "merges") if pre.ignore_merges else ("merges", "takes")
        yield (
            f"llama.cpp's {pre.name} {ours} a word that is a token {'whole' if pre.ignore_merges else 'from parts'}, "
            f"tokenizer.json {theirs} it (ignore_merges): a word may get other tokens."
        )
    if steps_of(tokenizer.get("normalizer"), "normalizers"):
        yield (
            "tokenizer.json composes accents (NFC) and llama.cpp does not: text with decomposed accents gets other "
            "tokens."
        )
    if pre.caveat:
        yield pre.caveat


def sentencepiece_remarks(tokenizer: Mapping[str, Any], tokens: Collection[str]) -> Iterator[str]:
    """Say what the engine's SentencePiece-style BPE does otherwise with a tokenizer.json.

    Raises:
        UnsupportedModelError: Pieces are written in a way that the engine's merges cannot have.
    """
    model = tokenizer["model"]
    check_model(model)
    yield from _dropout(model)
    metaspace = [s for s in steps_of(tokenizer.get("pre_tokenizer"), "pretokenizers") if s.get("type") == "Metaspace"]
    if any(step.get("split", True) for step in metaspace) and any(META in text[1:] for text in tokens):
        yield (
            "tokenizer.json cuts text before every space (Metaspace with split), llama.cpp does not: tokens that hold "
            "a space inside are made where they were not."
        )


def space_remarks(scheme: str, *, writes_prefix: bool) -> Iterator[str]:
    """Say where the engine puts spaces that the source does not.

    Args:
        scheme: Where a tokenizer.json puts them: `first`, `always` (but never a second one), `prepend` or `never`.
        writes_prefix: What `tokenizer.ggml.add_space_prefix` says.
    """
    if scheme == "first":
        kept = (
            "words after special tokens get a space more than they should" if writes_prefix
            else "chat prompts are right, and a text that begins without a special token lacks its first space"
        )  # fmt: skip
        yield (
            "tokenizer.json puts a space before the first word of a text alone (prepend_scheme first); llama.cpp puts "
            f"one after every special token, or none at all. It is written so that {kept}."
        )
    elif scheme == "always":
        yield (
            "tokenizer.json puts a space before a text and after special tokens unless there is one (Metaspace); "
            "llama.cpp puts a second one there."
        )


def sentencepiece_model_remarks(*, has_charsmap: bool, strips_spaces: bool) -> Iterator[str]:
    """Say what the engine leaves out of a tokenizer.model's normalization."""
    if has_charsmap:
        yield "tokenizer.model normalizes characters (charsmap) and llama.cpp does not: such text gets other tokens."
    if strips_spaces:
        yield "tokenizer.model removes extra white space and llama.cpp does not: such text gets other tokens."


def added_around(post_processor: Any, adds: Mapping[str, bool], names: Mapping[str, str | None]) -> Iterator[str]:
    """Say which tokens a tokenizer.json puts around a text that the engine does not, or the other way round.

    Args:
        post_processor: Of tokenizer.json.
        adds: Whether the engine puts `bos` before and `eos` after a text.
        names: Texts of these tokens.
    """
    single = next((_single(s) for s in steps_of(post_processor, "processors") if s.get("type") in _PUT_AROUND), None)
    if not isinstance(single, list):
        return
    pieces = [next(iter(piece.items())) for piece in single if isinstance(piece, dict) and len(piece) == 1]
    texts = [
        str(inner.get("id")) if kind == "SpecialToken" and isinstance(inner, dict) else "" for kind, inner in pieces
    ]
    if texts.count("") != 1:
        return
    at = texts.index("")
    ours = [[names[role]] if adds.get(role) and names.get(role) else [] for role in ("bos", "eos")]
    for place, stated, found in (("before", texts[:at], ours[0]), ("after", texts[at + 1 :], ours[1])):
        if stated != found:
            yield (
                f"tokenizer.json puts {_listed(stated, keep_order=True) or 'nothing'} {place} a text, llama.cpp "
                f"{_listed([t for t in found if t], keep_order=True) or 'nothing'}."
            )


_PUT_AROUND = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")


def _single(step: Mapping[str, Any]) -> Any:
    """Return what a post-processor makes of one text, as a template."""
    if step.get("type") == "TemplateProcessing":
        return step.get("single")
    around = [pair[0] if isinstance(pair, list) and pair else None for pair in (step.get("cls"), step.get("sep"))]
    first, last = ({"SpecialToken": {"id": text}} for text in around)
    return [first, {"Sequence": {"id": "A"}}, last]


def check_model(model: Mapping[str, Any]) -> None:
    """Refuse pieces written in a way that the engine's merges cannot have.

    Raises:
        UnsupportedModelError: They have prefixes or suffixes of their own.
    """
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedModelError(
                f"tokenizer.json: {key} is {str(model[key])[:40]!r}, which llama.cpp's merges do not have. Supported: "
                f"none."
            )


def _dropout(model: Mapping[str, Any]) -> Iterator[str]:
    if model.get("dropout"):
        yield f"tokenizer.json leaves out merges by chance (dropout {model['dropout']}); llama.cpp never does."


def steps_of(part: Any, plural: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or post-processor, a sequence or one; odd ones are none."""
    steps = part.get(plural, [part]) if isinstance(part, dict) else []
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _listed(texts: Collection[str], *, keep_order: bool = False) -> str:
    """Name some of the texts."""
    shown = list(texts) if keep_order else sorted(texts)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(repr(text[:40]) for text in shown[:_SHOWN]) + more
