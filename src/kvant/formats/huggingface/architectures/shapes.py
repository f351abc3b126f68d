"""What tensors a model must have, and their shapes, by its family and configuration.

A family's own shapes are written as products of entries of config.json: `("num_experts", "2*hidden_size")`.
`{experts}` is the number of experts, whichever entry says it; `?` is any length.
"""

from collections.abc import Collection, Mapping
from math import prod

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import INTEGERS
from kvant.formats.huggingface.config import Config
from kvant.tensors import Tensor

ANY = -1
"""A length that is not checked."""

MAX_EXPERTS = 4096
"""More experts than any published model has in a layer; the number of tensors looked for grows with it."""

PER_TOKEN = ("token_embd", "output")
"""Stems with a row per token; how many those are is checked against the tokenizer."""


def check_tensors(tensors: Mapping[str, Tensor], family: Family, config: Config) -> None:
    """Check that every block is whole and that the rows fit the hyperparameters.

    Raises:
        FormatError: A tensor is missing, or of another shape than config.json says.
    """
    wanted = [f"{stem}.weight" for stem in family.ends]
    for layer in range(family.blocks(config)):
        stems = (f"blk.{layer}.{stem}" for stem in family.required_in(config, layer))
        wanted += [name if name in tensors or name.endswith(".bias") else f"{name}.weight" for name in stems]
    if family.has_head and not config.flag("tie_word_embeddings"):
        wanted.append("output.weight")
    missing = [name for name in wanted if name not in tensors]
    if missing == ["output.weight"]:
        raise FormatError(
            f"{config.path.parent}: has no lm_head.weight, and tie_word_embeddings is not true. If the model's head is "
            "its embedding, set tie_word_embeddings to true in config.json; else download all weight files."
        )
    if missing:
        theirs = family.transformers_name(missing[0]) or family.transformers_name(missing[0].removesuffix(".weight"))
        which = f"{len(missing)} tensors are missing, first" if len(missing) > 1 else "1 tensor is missing:"
        raise FormatError(
            f"{config.path.parent}: {which} {(theirs or missing[0]).replace('{}', '*')}. Download all weight files."
        )
    common = expected_shapes(family, config, {family.stem(name) or "" for name in tensors})
    blocks = {layer: {**common, **family.shapes_in(config, layer)} for layer in (None, *range(family.blocks(config)))}
    for name, tensor in tensors.items():
        stem = family.stem(name) or ""
        block = family.layer(name)
        if block is not None and block >= family.blocks(config):
            raise FormatError(
                f"{name}: is beyond the {family.blocks(config)} layers that {config.path} names. Correct it."
            )
        shapes = blocks[block]
        per_token = (*tensor.shape[:1], config.integer("hidden_size"))
        shape: tuple[int, ...] | None = per_token if stem in PER_TOKEN else shapes.get(stem)
        if shape and not name.endswith(".bias") and not _fits(tensor.shape, shape):
            raise FormatError(
                f"{name}: shape {list(tensor.shape)} is not the {_shown(shape)} that hidden size, heads and layers in "
                f"{config.path} give. Check that it belongs to these weights."
            )


def check_alike(tensors: Mapping[str, Tensor], family: Family, config: Config) -> None:
    """Refuse a tensor that only some of the blocks of one kind have: of an optional one nobody else would miss it.

    Raises:
        FormatError: One is missing.
    """
    kinds: dict[tuple[str, ...], dict[int, set[str]]] = {}
    held: dict[int, set[str]] = {}
    for name in tensors:
        layer = family.layer(name)
        if layer is not None:
            held.setdefault(layer, set()).add(name.removeprefix(f"blk.{layer}."))
    for layer in range(family.blocks(config)):
        kind = tuple(family.required_in(config, layer))
        if kind:
            kinds.setdefault(kind, {})[layer] = held.get(layer, set())
    for blocks in kinds.values():
        every = set().union(*blocks.values())
        for layer, has in blocks.items():
            for missing in sorted(every - has):
                other = next(other for other, theirs in blocks.items() if missing in theirs)
                raise FormatError(
                    f"{config.path.parent}: layer {layer} has no {missing}, which layer {other} has. Download all "
                    "weight files."
                )


def _fits(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(found) == len(wanted) and all(w in (ANY, f) for f, w in zip(found, wanted, strict=True))


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('any' if length == ANY else str(length) for length in shape)}]"


def expected_shapes(family: Family, config: Config, stems: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape that each weight must have by its stem, those with a row per token apart; empty: any.

    Args:
        family: The family.
        config: The configuration.
        stems: Those that the model has; entries of config.json that the others need may be absent.
    """
    own = {
        stem: tuple(_length(dim, family, config) for dim in dims)
        for stem, dims in family.shapes.items()
        if stem in stems
    }
    if family.counts is not INTEGERS:
        return own
    hidden, ffn, head = config.integer("hidden_size"), config.integer("intermediate_size"), config.head_dim
    heads, kv_heads = config.integer("num_attention_heads") * head, config.integer("num_key_value_heads") * head
    up = ffn if "ffn_gate" in family.names else 2 * ffn
    norms = {stem: (hidden,) for stem in family.names if stem.endswith("_norm")}
    return {
        **norms, "attn_q_norm": (head,), "attn_k_norm": (head,), "output_norm": (hidden,),
        "attn_q": (heads, hidden), "attn_k": (kv_heads, hidden), "attn_v": (kv_heads, hidden),
        "attn_qkv": (heads + 2 * kv_heads, hidden), "attn_output": (hidden, heads),
        "ffn_gate": (ffn, hidden), "ffn_up": (up, hidden), "ffn_down": (hidden, ffn), **own,
    }  # fmt: skip


def _length(product: str, family: Family, config: Config) -> int:
    """Return the length that a product of entries of config.json says."""
    return ANY if product == "?" else prod(_factor(name, family, config) for name in product.split("*"))


def _factor(name: str, family: Family, config: Config) -> int:
    if name == "{experts}":
        return expert_count(family, config)
    if name == "head_dim":
        return config.head_dim
    return int(name) if name.isdecimal() else config.integer(name)


def expert_count(family: Family, config: Config) -> int:
    """Return the number of experts in a layer; 0 of a family without any."""
    entry = next((key.entry(config) for key in family.experts if key.ours.endswith("expert_count")), None)
    return config.integer(entry, limit=MAX_EXPERTS) if entry and config.get(entry) != 0 else 0
