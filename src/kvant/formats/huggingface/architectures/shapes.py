"""What tensors a model must have, and their shapes, by its family and configuration."""

from collections.abc import Mapping

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.base import Family
from kvant.formats.huggingface.config import Config
from kvant.tensors import Tensor

PER_TOKEN = ("token_embd", "output")
"""Stems with a row per token; how many those are is checked against the tokenizer."""


def check_tensors(tensors: Mapping[str, Tensor], family: Family, config: Config) -> None:
    """Check that every block is whole and that the rows fit the hyperparameters.

    Raises:
        FormatError: A tensor is missing, or of another shape than config.json says.
    """
    wanted = ["token_embd.weight", "output_norm.weight"]
    wanted += [f"blk.{layer}.{stem}.weight" for layer in range(config.n_layers) for stem in family.required]
    if not config.flag("tie_word_embeddings"):
        wanted.append("output.weight")
    missing = [name for name in wanted if name not in tensors]
    if missing == ["output.weight"]:
        raise FormatError(
            f"{config.path.parent}: has no lm_head.weight, and tie_word_embeddings is not true. If the model's head is "
            "its embedding, set tie_word_embeddings to true in config.json; else download all weight files."
        )
    if missing:
        theirs = family.transformers_name(missing[0])
        raise FormatError(
            f"{config.path.parent}: {len(missing)} tensors are missing, first {theirs}. Download all weight files."
        )
    shapes = expected_shapes(family, config)
    for name, tensor in tensors.items():
        stem = family.stem(name) or ""
        layer = family.layer(name)
        if layer is not None and layer >= config.n_layers:
            raise FormatError(f"{name}: is beyond the {config.n_layers} layers that {config.path} names. Correct it.")
        shape = (*tensor.shape[:1], config.integer("hidden_size")) if stem in PER_TOKEN else shapes.get(stem)
        if shape is not None and name.endswith(".weight") and tensor.shape != shape:
            raise FormatError(
                f"{name}: shape {list(tensor.shape)} is not the {list(shape)} that hidden size, heads and layers in "
                f"{config.path} give. Check that it belongs to these weights."
            )


def expected_shapes(family: Family, config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape that each weight must have by its stem, those with a row per token apart."""
    hidden, ffn, head = config.integer("hidden_size"), config.integer("intermediate_size"), config.head_dim
    heads, kv_heads = config.integer("num_attention_heads") * head, config.integer("num_key_value_heads") * head
    up = ffn if "ffn_gate" in family.block_names else 2 * ffn
    norms = {stem: (hidden,) for stem in family.block_names if stem.endswith("_norm")}
    return {
        **norms, "attn_q_norm": (head,), "attn_k_norm": (head,), "output_norm": (hidden,),
        "attn_q": (heads, hidden), "attn_k": (kv_heads, hidden), "attn_v": (kv_heads, hidden),
        "attn_qkv": (heads + 2 * kv_heads, hidden), "attn_output": (hidden, heads),
        "ffn_gate": (ffn, hidden), "ffn_up": (up, hidden), "ffn_down": (hidden, ffn),
    }  # fmt: skip
