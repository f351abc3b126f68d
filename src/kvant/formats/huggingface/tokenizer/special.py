"""Special tokens: which id plays which role, and which of them the tokenizer adds to a text by itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvant.formats.huggingface.config import shown
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles, read_object
from kvant.formats.huggingface.tokenizer.vocabulary import AddedToken, Vocabulary, is_id
from kvant.metadata import TokenType, Value, boolean, u32

ROLE_KEYS: Mapping[str, str] = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
"""GGUF key of each role; the spelling of the separator's is the format's own."""

ROLES = ("bos", "eos", "unk", "sep", "pad", "mask", "cls")
ADDED_ROLES = ("bos", "eos", "sep")
ENGINE_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"bos": 11, "eos": 11}, "llama": {"bos": 1, "eos": 2}, "t5": {"eos": 1}, "gemma4": {}, "bert": {},
    "glm4": {"eos": 11}, "chatglm-bpe": {"eos": 11},
}  # fmt: skip
"""Ids that the engine takes where a file names none, by `tokenizer.ggml.model`, and by `.pre` where that says otherwise
(llama-vocab.cpp, `load`)."""

_GLM = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
_CHATGLM = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}
_GLM4 = {**_CHATGLM, "bos": "<|endoftext|>"}
FAMILY_ROLES: Mapping[str, Mapping[str, str]] = {
    "glm4_moe": _GLM, "glm4_moe_lite": _GLM, "glm4v_moe": _GLM, "glm_moe_dsa": _GLM,
    "glm4": _GLM4, "glm4v": _GLM4, "glm": _CHATGLM, "chatglm": _CHATGLM,
    "solar_open": {"eos": "<|endoftext|>", "eot": "<|endoftext|>", "unk": "<unk>", "bos": "<|startoftext|>"},
}  # fmt: skip
"""Texts of roles that upstream's converter knows of a family, by `model_type`; what the files say comes first.

Source: conversion/glm.py, conversion/chatglm.py `set_vocab`; conversion/base.py `_set_vocab_glm`."""

FAMILY_ADDS: Mapping[str, Mapping[str, bool]] = {
    "modernbert": {"bos": True, "eos": True, "sep": True},
    "eurobert": {"bos": False},
}
"""Tokens put around a text by a family's tokenizer, where its files do not say (conversion/bert.py `set_vocab`)."""

FAMILY_END: Mapping[str, str] = {"hunyuan_v1_dense": "eod_token_id"}
"""Entry of config.json that names the end of a text in place of `eos_token_id`, by `model_type`; the first of several
ends in generation_config.json is then that of a turn (conversion/hunyuan.py `set_vocab`)."""

KNOWN_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
    "<｜end▁of▁sentence｜>",
})  # fmt: skip
"""Texts the engine takes for ends of an answer without being told (llama-vocab.cpp, `special_eog_ids`)."""


@dataclass(slots=True)
class SpecialTokens:
    """Roles and habits of a tokenizer.

    Attributes:
        ids: Token id of each role.
        add: Whether a role's token is put around a text: `bos` before, `eos` after, `sep` between two.
    """

    ids: dict[str, int] = field(default_factory=dict)
    add: dict[str, bool] = field(default_factory=dict)

    def metadata(self) -> dict[str, Value]:
        """Return the metadata keys that say this."""
        keys = {ROLE_KEYS[role]: u32(number) for role, number in self.ids.items()}
        keys |= {f"tokenizer.ggml.add_{role}_token": boolean(value) for role, value in self.add.items()}
        return keys


def read_special_tokens(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    added: Mapping[int, AddedToken],
    vocab: Mapping[str, int],
    size: int,
    remarks: list[str] | None = None,
) -> SpecialTokens:
    """Work out the special tokens from the tokenizer's post-processor, its configuration and the model's.

    Args:
        files: The tokenizer's files.
        config: config.json.
        added: Added tokens by id.
        vocab: Id of every other token text.
        size: Tokens in the vocabulary.
        remarks: Is told of roles whose id or text is no token of the vocabulary; they are left out, as upstream does.
    """
    remarks = [] if remarks is None else remarks
    stated = {**read_object(files.directory, "special_tokens_map.json"), **files.config}
    names = {role: _content(stated.get(f"{role}_token")) for role in ROLES}
    remarks += _odd_entries(stated, config, files.generation)
    special = SpecialTokens()
    if files.tokenizer:  # an encoder's texts begin with its class token and end with its separator
        names["bos"], names["eos"] = names["bos"] or names["cls"], names["eos"] or names["sep"]
    _read_post_processor(files.tokenizer.get("post_processor"), names, special.add)
    del names["cls"]
    for role in ADDED_ROLES:
        adds = files.config.get(f"add_{role}_token")
        if isinstance(adds, bool):
            special.add.setdefault(role, adds)
    by_text = {token.content: number for number, token in added.items()}
    for role, name in names.items():
        if name is not None and name in by_text:
            special.ids[role] = by_text[name]
    _read_config_ids(config, names, special.ids)
    for role, name in names.items():
        if name is not None and name in vocab:
            special.ids.setdefault(role, vocab[name])
    _read_family(config, files.generation, by_text, special)
    _read_end_ids(files, config, added, special.ids)
    absent = {role: name for role, name in names.items() if name and name not in by_text and name not in vocab}
    remarks += [f"{role}_token {name[:40]!r} is no token of the tokenizer: left out." for role, name in absent.items()]
    for role in [role for role, number in special.ids.items() if not 0 <= number < size]:
        number = special.ids.pop(role)
        special.add.pop(role, None)
        remarks.append(f"{role}_token_id {number} is none of the {size} tokens: written without a {role} token.")
    return special


def unnamed_roles(model: str, special: SpecialTokens, vocabulary: Vocabulary) -> Iterator[str]:
    """Say what the engine does where no token is named for a role; what it would add of its own choice is switched off.

    Args:
        model: `tokenizer.ggml.model`, or the pre-tokenizer if `ENGINE_DEFAULTS` has it.
        special: The tokenizer's special tokens.
        vocabulary: Its tokens.
    """
    for role in ("bos", "eos"):
        if special.add.get(role) and role not in special.ids and role not in ENGINE_DEFAULTS[model]:
            special.add[role] = False  # the engine ends on the first text that it is to add nothing to
            yield f"add_{role}_token is true, but no {role} token is named: none is added."
    for role, number in ENGINE_DEFAULTS[model].items():
        if role in special.ids or number >= len(vocabulary.tokens) or vocabulary.types[number] == TokenType.CONTROL:
            continue
        if special.add.get(role):
            special.add[role] = False
            yield f"add_{role}_token is true, but no {role} token is named: none is added."
        if role == "eos":
            yield (
                f"No end of a text is named (eos_token, eos_token_id): llama.cpp takes token {number} "
                f"({vocabulary.tokens[number][:40]!r}) for it and ends answers there, too."
            )


def _odd_entries(stated: Mapping[str, Any], config: Mapping[str, Any], generation: Mapping[str, Any]) -> Iterator[str]:
    """Say which entries that should name a special token cannot be read."""
    for role in ROLES[:-1]:
        entry = stated.get(f"{role}_token")
        if entry is not None and _content(entry) is None:
            yield f"tokenizer_config.json: {role}_token is {shown(entry)}, not a token's text: passed over."
        for place, entries in (("config.json", config), ("generation_config.json", generation)):
            number = entries.get(f"{role}_token_id")
            ids = number if isinstance(number, list) and role == "eos" else [] if number is None else [number]
            if any(not isinstance(i, int) or isinstance(i, bool) for i in ids):
                yield f"{place}: {role}_token_id is {shown(number)}, not a token's id: passed over."


def _content(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _read_config_ids(config: Mapping[str, Any], names: Mapping[str, str | None], ids: dict[str, int]) -> None:
    text_config = config.get("text_config")
    for role in names:
        number = config.get(f"{role}_token_id")
        if number is None and isinstance(text_config, dict):
            number = text_config.get(f"{role}_token_id")
        if isinstance(number, int) and not isinstance(number, bool):
            ids.setdefault(role, number)


def _read_family(
    config: Mapping[str, Any], generation: Mapping[str, Any], ids: Mapping[str, int], special: SpecialTokens
) -> None:
    """Fill in what upstream's converter knows of a family's special tokens."""
    family = str(config.get("model_type"))
    for role, text in FAMILY_ROLES.get(family, {}).items():
        if text in ids:
            special.ids.setdefault(role, ids[text])
    for role, adds in FAMILY_ADDS.get(family, {}).items():
        special.add.setdefault(role, adds)
    end = config.get(FAMILY_END.get(family, ""))
    if is_id(end):
        special.ids["eos"] = end
        ends = generation.get("eos_token_id")
        if isinstance(ends, list) and len(ends) > 1 and is_id(ends[0]):
            special.ids["eot"] = ends[0]


def _read_end_ids(
    files: TokenizerFiles, config: Mapping[str, Any], added: Mapping[int, AddedToken], ids: dict[str, int]
) -> None:
    """Carry over a list of end tokens: the engine knows one `eos`, one `eot`, one `eom`, and some by their text."""
    ends: list[int] = []
    for source in (config, files.generation):
        listed = source.get("eos_token_id")
        for number in listed if isinstance(listed, list) else [listed]:
            if is_id(number) and number not in ends:
                ends.append(number)
    if ends:
        ids.setdefault("eos", ends[0])
    unknown = [n for n in ends if n != ids["eos"] and (n not in added or added[n].content not in KNOWN_ENDS)]
    ids.update(zip([role for role in ("eot", "eom") if role not in ids], unknown, strict=False))


def _read_post_processor(post_processor: Any, names: dict[str, str | None], add: dict[str, bool]) -> None:
    """Learn from a tokenizer.json post-processor which tokens it adds; may correct the names of bos, eos and sep.

    Follows the rules of upstream's converter (gguf-py vocab.py `SpecialVocab`), so that the same keys come out.
    """
    if not isinstance(post_processor, dict):
        return
    steps = post_processor.get("processors", [post_processor])
    for step in steps if isinstance(steps, list) else ():
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "ByteLevel":
            add.setdefault("bos", False)
            add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            add |= {"bos": True, "eos": True, "sep": True}
            for role, other in (("cls", "bos"), ("sep", "eos")):
                pair = step.get(role)
                names[role] = names[role] or (pair[0] if isinstance(pair, list) and pair else names[other])
        elif kind == "TemplateProcessing":
            first, last = _read_single(_pieces(step.get("single")), names, add)
            _read_pair(_pieces(step.get("pair")), first, last, names, add)


def _pieces(template: Any) -> list[tuple[str, str]]:
    """Turn a template into (`SpecialToken` or `Sequence`, id) pairs."""
    found: list[tuple[str, str]] = []
    for piece in template if isinstance(template, list) else ():
        if isinstance(piece, dict) and len(piece) == 1:
            ((kind, value),) = piece.items()
            found.append((str(kind), str(value.get("id")) if isinstance(value, dict) else ""))
    return found


def _special(pieces: list[tuple[str, str]], index: int) -> str | None:
    return pieces[index][1] if pieces and pieces[index][0] == "SpecialToken" else None


def _read_single(
    single: list[tuple[str, str]], names: dict[str, str | None], add: dict[str, bool]
) -> tuple[str | None, str | None]:
    if len(single) < 2:
        return None, None
    first, last = _special(single, 0), _special(single, -1)
    if first:
        names["bos"], names["cls"] = names["bos"] or first, names.get("cls") or first
        add["bos"] = first in (names["bos"], names["cls"])
    if last:
        if last != names["eos"]:
            names["eot"], names["eos"] = names["eos"], last
        add["eos"] = True
    return first, last


def _read_pair(
    pair: list[tuple[str, str]],
    first: str | None,
    last: str | None,
    names: dict[str, str | None],
    add: dict[str, bool],
) -> None:
    """Learn whether a separator stands between two texts: `A [sep] [eos] B`."""
    if first and _special(pair, 0) == first:
        pair = pair[1:]
    if last and _special(pair, -1) == last:
        pair = pair[:-1]
    if len(pair) < 3 or pair[0] != ("Sequence", "A") or pair[-1] != ("Sequence", "B"):
        return
    between = pair[1:-1]
    separators = (names["sep"], names["eos"])
    add_sep = _special(between, 0) in separators and not last
    if len(between) == 2:
        add_sep = add_sep or _special(between, 1) in separators
    add["sep"] = add_sep
    if add_sep and not names["sep"]:
        names["sep"] = names["eos"]
