"""A model family as a table: names of its tensors, the few that change on the way, and its hyperparameters.

Everything works in both directions from the same table: Hugging Face names and layouts to canonical ones (llama.cpp's)
and back. A new family is a module with one `Family`, added to `registry.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.hyper import has, integer, number
from kvant.formats.huggingface.architectures.rope import config_theta, rope_entries, rope_scaling
from kvant.formats.huggingface.config import MAX_LAYERS, Config
from kvant.formats.huggingface.lazy import gathered, shifted
from kvant.metadata import Value, f32, u32
from kvant.model import Model
from kvant.tensors import LazyTensor, Tensor

GLOBAL_NAMES: Mapping[str, str] = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
)
"""Tensors outside the blocks: canonical stem to transformers' stem."""

BLOCK_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
"""Tensors of a block, as Llama and most of its descendants name them."""

ATTENTION_BIASES = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP_BIASES = ("ffn_gate", "ffn_up", "ffn_down")
LLAMA_FLAGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES}
)
"""Entries by which a config.json asks for biases, and the stems that then have one."""

INTEGERS: tuple[tuple[str, str], ...] = (
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
)
"""Hyperparameters that both sides store as they are: GGUF key without its architecture, config.json key."""

_IN_BLOCK = re.compile(r"model\.layers\.(0|[1-9]\d{0,3})\.(.+)\.(weight|bias)")
_OUTSIDE = re.compile(r"(.+)\.(weight|bias)")
_CANONICAL_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)\.(weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """How a tensor's values change between transformers' layout and the canonical one.

    Attributes:
        forward: From transformers' layout.
        back: To transformers' layout; the inverse.
    """

    forward: Callable[[Tensor, Config], LazyTensor]
    back: Callable[[Tensor, Config], LazyTensor]


def _nothing_extra(_: Config) -> list[LazyTensor]:
    return []


def _nothing_refused(_: Config) -> None:
    return None


def _no_window(_: Config) -> int | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets a family of models apart.

    Attributes:
        architecture: llama.cpp's name, which prefixes the metadata keys.
        classes: Classes in `architectures` of config.json; the first one is written on the way back.
        model_type: `model_type` written on the way back.
        activation: The one activation function llama.cpp computes for this architecture.
        rope_types: Rotary scalings that both sides know.
        block_names: Canonical stem to transformers' stem within a block.
        required: Stems that every block must have.
        transforms: Tensors that change, by canonical stem.
        defaults: Entries that transformers assumes when config.json leaves them out.
        skipped: Prefixes of tensors that are no part of the language model.
        check: Refuses configurations that llama.cpp would compute differently.
        metadata: Hyperparameters under GGUF keys, in upstream's order.
        extra_tensors: Tensors that upstream computes from the configuration.
        config: Hyperparameters back to entries of config.json.
        computes_head_dim: Whether transformers fills in a head length that config.json leaves out.
        entries: What its config.json may hold beyond `entries.COMMON`.
        biased: Stems that have a bias whatever config.json says.
        bias_flags: Entries of config.json that ask for biases, and the stems that then have one.
        engine_biases: Stems whose biases llama.cpp adds.
        unseen_window: Tokens that transformers attends back to in layers where llama.cpp attends to all; None if none.
    """

    architecture: str
    classes: tuple[str, ...]
    model_type: str
    metadata: Callable[[Config], dict[str, Value]]
    config: Callable[[Model], dict[str, Any]]
    defaults: Mapping[str, Any]
    activation: str = "silu"
    rope_types: frozenset[str] = frozenset({"default", "linear", "yarn"})
    block_names: Mapping[str, str] = field(default_factory=lambda: BLOCK_NAMES)
    required: tuple[str, ...] = tuple(BLOCK_NAMES)
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    check: Callable[[Config], None] = _nothing_refused
    extra_tensors: Callable[[Config], list[LazyTensor]] = _nothing_extra
    computes_head_dim: bool = False
    entries: frozenset[str] = frozenset()
    biased: tuple[str, ...] = ()
    bias_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engine_biases: frozenset[str] = frozenset(ATTENTION_BIASES[:3])
    unseen_window: Callable[[Config], int | None] = _no_window

    def biases(self, config: Config) -> frozenset[str]:
        """Return the stems that have a bias in transformers."""
        asked = [stem for flag, stems in self.bias_flags.items() if config.flag(flag) for stem in stems]
        return frozenset((*self.biased, *asked))

    def stem(self, name: str) -> str | None:
        """Return the stem of a canonical tensor name: `attn_q` of `blk.3.attn_q.weight`; None for another form."""
        match = _CANONICAL_BLOCK.fullmatch(name)
        if match:
            return match[2]
        match = _OUTSIDE.fullmatch(name)
        return match[1] if match and match[1] in GLOBAL_NAMES else None

    def layer(self, name: str) -> int | None:
        """Return the block that a canonical tensor name is in; None outside the blocks."""
        match = _CANONICAL_BLOCK.fullmatch(name)
        return int(match[1]) if match else None

    def canonical_name(self, name: str) -> str | None:
        """Translate transformers' name of a tensor; None if the family has no such tensor."""
        name = name.replace("language_model.", "", 1)
        name = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
        match = _IN_BLOCK.fullmatch(name)
        if match:
            stem = {theirs: ours for ours, theirs in self.block_names.items()}.get(match[2])
            return None if stem is None else f"blk.{match[1]}.{stem}.{match[3]}"
        match = _OUTSIDE.fullmatch(name)
        stem = {theirs: ours for ours, theirs in GLOBAL_NAMES.items()}.get(match[1]) if match else None
        return f"{stem}.{match[2]}" if match and stem else None

    def transformers_name(self, name: str) -> str | None:
        """Translate a canonical name of a tensor; None if transformers has no such tensor."""
        match = _CANONICAL_BLOCK.fullmatch(name)
        if match:
            theirs = self.block_names.get(match[2])
            return None if theirs is None else f"model.layers.{match[1]}.{theirs}.{match[3]}"
        match = _OUTSIDE.fullmatch(name)
        theirs = GLOBAL_NAMES.get(match[1]) if match else None
        return f"{theirs}.{match[2]}" if match and theirs else None


def interleave_order(n_heads: int, n_rows: int) -> np.ndarray:
    """Return the source row of each row when rotary pairs move from halves of a head to neighbours, int64 [n_rows].

    transformers rotates component i of a head with i + d/2; llama.cpp's "normal" rotation pairs 2i with 2i + 1, so
    row (head, i, half) takes its values from row (head, half, i).
    """
    return np.arange(n_rows).reshape(n_heads, 2, n_rows // n_heads // 2).swapaxes(1, 2).reshape(-1)


def _rotary(heads_key: str) -> Transform:
    def order(tensor: Tensor, config: Config) -> np.ndarray:
        heads, rows = config.integer(heads_key), tensor.shape[0]
        if rows % (2 * heads):
            raise FormatError(
                f"{tensor.name}: {rows} rows are not {heads} heads of even length. Check {heads_key} in {config.path}."
            )
        return interleave_order(heads, rows)

    return Transform(
        forward=lambda tensor, config: gathered(tensor, order(tensor, config)),
        back=lambda tensor, config: gathered(tensor, np.argsort(order(tensor, config))),
    )


ROTARY: Mapping[str, Transform] = MappingProxyType(
    {"attn_q": _rotary("num_attention_heads"), "attn_k": _rotary("num_key_value_heads")}
)
"""Query and key rows of the architectures that llama.cpp rotates in neighbouring pairs."""

PLUS_ONE = Transform(forward=lambda tensor, _: shifted(tensor, 1.0), back=lambda tensor, _: shifted(tensor, -1.0))
"""Norm weights that transformers stores without the 1 that it adds to them."""


def hyperparameters(config: Config, architecture: str) -> dict[str, Value]:
    """Return the metadata that every family has, in upstream's order."""
    found = {
        f"{architecture}.{ours}": u32(config.n_layers if ours == "block_count" else config.integer(theirs))
        for ours, theirs in INTEGERS
    }
    found |= rope_scaling(config, architecture)
    found[f"{architecture}.rope.freq_base"] = f32(config_theta(config))
    if config.local_rope_theta is not None:
        found[f"{architecture}.rope.freq_base_swa"] = f32(config.local_rope_theta)
    found[f"{architecture}.attention.layer_norm_rms_epsilon"] = f32(config.number("rms_norm_eps"))
    if config.get("head_dim") is not None:
        found[f"{architecture}.attention.key_length"] = u32(config.head_dim)
        found[f"{architecture}.attention.value_length"] = u32(config.head_dim)
    return found | file_type()


def file_type() -> dict[str, Value]:
    """Return the place of the file type in upstream's order; who writes a file sets its value."""
    return {"general.file_type": u32(0)}


def config_entries(model: Model) -> dict[str, Any]:
    """Return the entries of config.json that every family has, from a model's metadata.

    Raises:
        FormatError: A hyperparameter is missing or of the wrong type.
    """
    heads = integer(model, "attention.head_count")
    entries: dict[str, Any] = {
        theirs: integer(model, ours, heads if ours == "attention.head_count_kv" else None) for ours, theirs in INTEGERS
    }
    entries["rms_norm_eps"] = number(model, "attention.layer_norm_rms_epsilon", 1e-6)
    entries["rope_theta"] = number(model, "rope.freq_base", 10000.0)
    if entries["num_hidden_layers"] > MAX_LAYERS:
        raise FormatError(
            f"{model.path}: block_count {entries['num_hidden_layers']} is above {MAX_LAYERS}. Convert from the "
            f"original model again."
        )
    if has(model, "attention.key_length"):
        entries["head_dim"] = integer(model, "attention.key_length")
    return entries | rope_entries(model, entries["max_position_embeddings"])
