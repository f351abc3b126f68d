"""The way back: tokenizer files of a Hugging Face directory, from the `tokenizer.*` keys of a GGUF file.

What GGUF does not keep cannot come back: the normalizer is taken from the published tokenizers with the same
pre-tokenizer, and whether special tokens swallow the white space after them from the model's name, as the engine does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvant.errors import FormatError, LimitError, UnsupportedModelError
from kvant.files import atomic_write
from kvant.formats.huggingface.tokenizer.bpe import MAX_MERGES
from kvant.formats.huggingface.tokenizer.limits import PHI3_EXEMPT, is_phi3
from kvant.formats.huggingface.tokenizer.special import ROLE_KEYS
from kvant.formats.huggingface.tokenizer.vocabulary import MAX_TOKENS, META, check_text, splits
from kvant.formats.huggingface.tokenizer.words import DIGIT, DIGITS, GPT2, PreTokenizer, by_name
from kvant.metadata import TokenType, ValueType
from kvant.model import Model

_MODEL: Mapping[str, Any] = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip
_MARKED = ("llama", "gemma4")
"""Kinds that write a mark for a space."""
_TO_MARKS: Mapping[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": META}
_FROM_MARKS: Sequence[Mapping[str, Any]] = (
    {"type": "Replace", "pattern": {"String": META}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
)  # fmt: skip
_AGAIN = "Make the file again from the original model."
_BYTE_LEVEL: Mapping[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def write_tokenizer(model: Model, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat templates.

    Args:
        model: A model with `tokenizer.*` metadata of kind `gpt2`, `llama` or `gemma4`.
        directory: Exists; files of these names are replaced.

    Raises:
        FormatError: Metadata is missing or contradicts itself.
        LimitError: More tokens or merges than a tokenizer can have.
        UnsupportedModelError: A kind of tokenizer or pre-tokenizer that has no tokenizer.json here.
    """
    tokens, types = _tokens(model)
    roles = _roles(model, tokens)
    kind = model.get("tokenizer.ggml.model")
    if kind == "gpt2":
        document = _byte_level(model, tokens, types)
    elif kind == "llama":
        document = _sentencepiece(model, tokens, types)
    elif kind == "gemma4":
        document = _ranked(model, tokens, types)
    else:
        raise UnsupportedModelError(
            f"tokenizer.ggml.model: {kind!r} cannot be written as tokenizer.json. Supported: gpt2, llama, gemma4."
        )
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types, swallow=is_phi3(model.name, tokens)),
        **document,
        "post_processor": _post_processor(model, tokens, roles, spm=kind in _MARKED),
    }
    _write_json(directory / "tokenizer.json", document)
    _write_json(directory / "tokenizer_config.json", _config(model, roles, document))
    _write_json(directory / "special_tokens_map.json", {f"{role}_token": text for role, text in roles.items()})
    _write_templates(model, directory)


def _tokens(model: Model) -> tuple[list[str], list[int]]:
    tokens = _strings(model, "tokenizer.ggml.tokens", MAX_TOKENS)
    if not tokens:
        raise FormatError("tokenizer.ggml.tokens: is missing or empty. The file holds no tokenizer to write.")
    for text in tokens:
        check_text(text)
    stored = model.metadata.get("tokenizer.ggml.token_type")
    types = [int(t) for t in _numbers(stored.value)] if stored else [int(TokenType.NORMAL)] * len(tokens)
    if len(types) != len(tokens):
        raise FormatError(f"tokenizer.ggml.token_type: {len(types)} types for {len(tokens)} tokens. {_AGAIN}")
    return tokens, types


def _numbers(value: Any) -> Any:
    return np.asarray(value).tolist()


def _strings(model: Model, key: str, limit: int) -> list[str]:
    value = model.metadata.get(key)
    if value is None:
        return []
    if value.item_type is not ValueType.STRING:
        raise FormatError(f"{key}: is not an array of strings. {_AGAIN}")
    items = value.value
    if len(items) > limit:  # type: ignore[arg-type]
        raise LimitError(f"{key}: {len(items)} entries are more than the limit of {limit}. {_AGAIN}")  # type: ignore[arg-type]
    return [str(item) for item in items]  # type: ignore[union-attr]


def _roles(model: Model, tokens: Sequence[str]) -> dict[str, str]:
    """Return the token text of each role that the file names."""
    roles = {}
    for role in ("bos", "eos", "unk", "sep", "pad", "mask"):
        number = model.get(ROLE_KEYS[role])
        if isinstance(number, int) and 0 <= number < len(tokens):
            roles[role] = tokens[number]
    return roles


def _added_tokens(tokens: Sequence[str], types: Sequence[int], *, swallow: bool) -> list[dict[str, Any]]:
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)

    def flags(text: str) -> dict[str, bool]:
        return {"single_word": False, "lstrip": False, "rstrip": swallow and text not in PHI3_EXEMPT,
                "normalized": False}  # fmt: skip

    return [
        {"id": number, "content": text, **flags(text), "special": kind != TokenType.USER_DEFINED}
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in kinds
    ]


def _vocab(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Return ids by text, without padding; added tokens are in it so that they keep their ids."""
    return {
        text: number
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != TokenType.UNUSED or text != f"[PAD{number}]"
    }


def _byte_level(model: Model, tokens: list[str], types: list[int]) -> dict[str, Any]:
    pre = by_name(str(model.get("tokenizer.ggml.pre", "default")))
    vocab = _vocab(tokens, types)
    return {
        "normalizer": {"type": pre.normalizer} if pre.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _steps(pre)},
        "decoder": {**_BYTE_LEVEL, "use_regex": True},
        "model": {**_MODEL, "ignore_merges": pre.ignore_merges, "vocab": vocab, "merges": _merges(model, vocab)},
    }


def _merges(model: Model, vocab: Mapping[str, int]) -> list[list[str]]:
    merges = []
    for rank, text in enumerate(_strings(model, "tokenizer.ggml.merges", MAX_MERGES)):
        left, space, right = text[:1] + text[1:].partition(" ")[0], *text[1:].partition(" ")[1:]
        if not space or left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(f"tokenizer.ggml.merges: entry {rank}, {text[:80]!r}, names or makes no token.")
        merges.append([left, right])
    return merges


def _ranked(model: Model, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Return what merges characters by rank, spaces marked: Gemma 4's."""
    vocab = _vocab(tokens, types)
    unknown = model.get(ROLE_KEYS["unk"])
    return {
        "normalizer": _TO_MARKS,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": _FROM_MARKS},
        "model": {
            **_MODEL,
            "unk_token": tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None,
            "fuse_unk": True,
            "byte_fallback": int(TokenType.BYTE) in types,
            "vocab": vocab,
            "merges": _merges(model, vocab),
        },
    }


def _steps(pre: PreTokenizer) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for pattern in pre.patterns:
        if pattern in (DIGIT, DIGITS):
            steps.append({"type": "Digits", "individual_digits": pattern == DIGIT})
        elif pattern == GPT2:  # what follows cuts text that is written in bytes already
            steps.append({**_BYTE_LEVEL, "use_regex": True})
        else:
            steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return steps if GPT2 in pre.patterns else [*steps, {**_BYTE_LEVEL, "use_regex": False}]


def _sentencepiece(model: Model, tokens: list[str], types: list[int]) -> dict[str, Any]:
    vocab = _vocab(tokens, types)
    stored = model.metadata.get("tokenizer.ggml.scores")
    scores = _numbers(stored.value) if stored else []
    if len(scores) != len(tokens):
        raise FormatError(f"tokenizer.ggml.scores: {len(scores)} scores for {len(tokens)} tokens. {_AGAIN}")
    prefix = bool(model.get("tokenizer.ggml.add_space_prefix", True))
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": META}, _TO_MARKS]}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    unknown = next((text for text, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    return {
        "normalizer": normalizer if prefix else _TO_MARKS,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*_FROM_MARKS, strip] if prefix else _FROM_MARKS},
        "model": {
            **_MODEL,
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": int(TokenType.BYTE) in types,
            "vocab": vocab,
            "merges": _all_splits(tokens, types, scores),
        },
    }


def _all_splits(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """List every split of every piece into two pieces, by falling score: ranked merges that do what scores do."""
    pieces = {text: number for number, text in enumerate(tokens) if types[number] == TokenType.NORMAL}
    merges: list[list[str]] = []
    for number in sorted(pieces.values(), key=lambda number: -scores[number]):
        pairs = splits(tokens[number], pieces)
        merges += [list(p) for p in sorted(pairs, key=lambda p: (pieces[p[0]], pieces[p[1]]))]
    if len(merges) > MAX_MERGES:
        raise LimitError(f"tokenizer: {len(merges)} merges are more than the limit of {MAX_MERGES}. Use another model.")
    return merges


def _post_processor(
    model: Model, tokens: Sequence[str], roles: Mapping[str, str], *, spm: bool
) -> dict[str, Any] | None:
    """Return the step that puts BOS and EOS around a text, if the engine does."""
    default_bos = spm or by_name(str(model.get("tokenizer.ggml.pre", "default"))).adds_bos
    add_bos = bool(model.get("tokenizer.ggml.add_bos_token", default_bos)) and "bos" in roles
    add_eos = bool(model.get("tokenizer.ggml.add_eos_token", False)) and "eos" in roles
    if not add_bos and not add_eos:
        return None
    ids = {text: number for number, text in enumerate(tokens)}
    before, after = [roles["bos"]] if add_bos else [], [roles["eos"]] if add_eos else []

    def template(letter: str, segment: int) -> list[dict[str, Any]]:
        wrap = [[{"SpecialToken": {"id": text, "type_id": segment}} for text in side] for side in (before, after)]
        return [*wrap[0], {"Sequence": {"id": letter, "type_id": segment}}, *wrap[1]]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in sorted({*before, *after})},
    }


def _config(model: Model, roles: Mapping[str, str], document: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {f"{role}_token": text for role, text in roles.items()}
    for role in ("bos", "eos"):
        stated = model.get(f"tokenizer.ggml.add_{role}_token")
        if isinstance(stated, bool):
            config[f"add_{role}_token"] = stated
    prefix = model.get("tokenizer.ggml.add_space_prefix")
    if isinstance(prefix, bool):
        config["add_prefix_space"] = prefix
    spm = model.get("tokenizer.ggml.model") in _MARKED
    config["clean_up_tokenization_spaces"] = (
        False if spm else by_name(str(model.get("tokenizer.ggml.pre", "default"))).cleans_spaces
    )
    context = model.get(f"{model.architecture}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in document["added_tokens"]
    }
    return config


def _write_templates(model: Model, directory: Path) -> None:
    main = model.get("tokenizer.chat_template")
    if isinstance(main, str):
        _write(directory / "chat_template.jinja", main.encode())
    folder = directory / "additional_chat_templates"
    for name in _strings(model, "tokenizer.chat_templates", 64):
        text = model.get(f"tokenizer.chat_template.{name}")
        if isinstance(text, str) and name.isascii() and name.replace("_", "").isalnum():
            folder.mkdir(exist_ok=True)
            _write(folder / f"{name}.jinja", text.encode())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write(path, msgspec.json.format(msgspec.json.encode(value), indent=2))


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)
