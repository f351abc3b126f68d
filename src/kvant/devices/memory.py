"""Predict the memory a model takes while it runs, from its hyperparameters and its file size alone.

    total = weights + repacked weights + KV cache + compute buffers + engine

The terms are llama.cpp's: a mapped file is resident once it was read; weights in a few types are copied into a faster
layout at load, stacked experts included; what is kept per token of context depends on the layers (`cache.py`); a
batch of up to 512 tokens is computed at a time. Checked against the resident set of the real engine in
tests/e2e/test_ram_prediction.py; the figures are in docs/explanation/choosing.md.

Source: llama.cpp `repack.cpp` (`ggml_repack_get_optimal_repack_type`, `supports_op`), read at b11549.
"""

import math
from collections.abc import Mapping

import msgspec

from kvant.devices.cache import (
    BATCH_TOKENS,
    F32_BYTES,
    WITHOUT_CACHE,
    Hyperparameters,
    cache_bytes,
    number,
    padded_cells,
)
from kvant.dtypes import BlockType

# Measured with xllamacpp 2026.10.11549 on Linux: the process before a model is open, and its tokenizer's tables
# (25.2 MB for the 49,152 tokens and 48,900 merges of SmolLM2).
ENGINE_BYTES = 42_000_000
BYTES_PER_TOKEN_ENTRY = 512
# Vectors per token that are live at the widest moment of a layer, and bytes of the attention mask per token and cell;
# fitted to SmolLM2-135M at contexts from 512 to 8192 with the same engine.
LIVE_FEED_FORWARD, LIVE_HIDDEN, MASK_BYTES = 3, 4, 3
# Beyond dense layers, from the compute buffers that the engine reports for small models: vectors as wide as each expert
# used, as a recurrent layer's inside, and as the embeddings that every layer has of its own.
LIVE_EXPERT, LIVE_STATE, LIVE_PER_LAYER = 4, 8, 3

# Of a projector: numbers live per patch and number of its widest layer while it encodes, and what a photograph takes
# while it is decoded and cut; measured with random idefics3 encoders of 64 to 1152 numbers and 16 to 1024 patches.
LIVE_ENCODER, PICTURE_BYTES = 8, 32_000_000

# Types that the engine keeps a second time in a layout for its fastest kernels, by processor; rows in eights.
REPACKED_TYPES = {
    "x86_64": frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
    "aarch64": frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"}),
}
REPACK_ROWS = 8
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
LOOKED_UP = frozenset({EMBEDDING, "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"})
"""Tables of which a token reads one row."""

EXPERTS = "exps."
"""In names of tensors that stack the matrices of all experts."""


class RamPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted memory of a running model, in bytes.

    Attributes:
        context: Tokens of context it holds for.
        weights_bytes: The file, mapped.
        repacked_bytes: Copies of weights in the engine's faster layout.
        kv_cache_bytes: Keys and values.
        compute_bytes: Activations of one batch and attention scores.
        engine_bytes: The program itself and its vocabulary tables.
        projector_bytes: The projector that goes with the model, with a picture.
        total_bytes: All of it.
    """

    context: int
    weights_bytes: int
    repacked_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    engine_bytes: int
    projector_bytes: int = 0
    total_bytes: int


def predict_ram(
    model: Hyperparameters, size_bytes: int, context: int, *, repacked: int = 0, batch: int = BATCH_TOKENS,
    projector: int = 0,
) -> RamPrediction:  # fmt: skip
    """Predict the memory of a variant.

    Args:
        model: The model, for its hyperparameters.
        size_bytes: Size of the variant's file.
        context: Tokens of context.
        repacked: Bytes of its weights that the engine copies, from `repacked_bytes`.
        batch: Tokens that are read at once.
        projector: Bytes that its projector takes, from `projector_bytes`.

    Returns:
        The prediction; on the reference model within 10 % of the measured resident set.
    """
    kv, engine = cache_bytes(model, context), engine_bytes(model)
    compute = compute_bytes(model, context, batch)
    return RamPrediction(
        context=context,
        weights_bytes=size_bytes,
        repacked_bytes=repacked,
        kv_cache_bytes=kv,
        compute_bytes=compute,
        engine_bytes=engine,
        projector_bytes=projector,
        total_bytes=size_bytes + repacked + kv + compute + engine + projector,
    )


def compute_bytes(model: Hyperparameters, context: int, batch: int = BATCH_TOKENS) -> int:
    """Bytes of one batch with flash attention: its activations at their widest, and the mask over the context.

    A vector of a text is made of the outputs of all its tokens, and the engine has room for the logits of each, whether
    it computes any or not: so of models that make vectors, and of batches larger than usual, which are read for these.
    Measured with all-MiniLM-L6-v2: 85, 111 and 147 MB for texts of 64, 256 and 512 tokens.
    """
    is_pooled = model.architecture in WITHOUT_CACHE or model.get(f"{model.architecture}.pooling_type") is not None
    n_logits = _n_vocabulary(model) if is_pooled or batch > BATCH_TOKENS else 0
    batch = min(context, batch)
    activations = F32_BYTES * (_live_weights(model) + n_logits)
    return batch * (activations + MASK_BYTES * padded_cells(context))


def _live_weights(model: Hyperparameters) -> int:
    """Activations of one token that are live at the widest moment: the widest of a layer's parts decides."""
    hidden = number(model, "embedding_length")
    feed_forward = number(model, "feed_forward_length", 4 * hidden)
    dense = LIVE_FEED_FORWARD * feed_forward + LIVE_HIDDEN * hidden
    used, expert = number(model, "expert_used_count"), number(model, "expert_feed_forward_length", feed_forward)
    experts = used * max(2 * hidden + expert, LIVE_EXPERT * expert) + hidden
    recurrent = LIVE_STATE * number(model, "ssm.inner_size")
    latent = 0
    if number(model, "attention.key_length_mla"):
        keys = number(model, "attention.key_length") + number(model, "attention.key_length_mla")
        latent = number(model, "attention.head_count") * (keys + number(model, "attention.kv_lora_rank"))
    per_layer = number(model, "block_count") * number(model, "embedding_length_per_layer_input")
    return max(dense, experts, recurrent, latent + LIVE_HIDDEN * hidden) + LIVE_PER_LAYER * per_layer


def engine_bytes(model: Hyperparameters) -> int:
    """Bytes of the program and of the tables it builds from the vocabulary."""
    return ENGINE_BYTES + BYTES_PER_TOKEN_ENTRY * _n_vocabulary(model)


def projector_bytes(size_bytes: int, patches: int, hidden: int) -> int:
    """Bytes of a projector that encodes a picture: its file, its activations, and the picture.

    Args:
        size_bytes: Its file.
        patches: Patches that it encodes at once.
        hidden: Numbers of a patch inside it, at its widest.
    """
    return size_bytes + F32_BYTES * LIVE_ENCODER * patches * hidden + PICTURE_BYTES


def _n_vocabulary(model: Hyperparameters) -> int:
    tokens = model.get("tokenizer.ggml.tokens")
    return len(tokens) if hasattr(tokens, "__len__") else 0


def repacked_bytes(
    types: Mapping[str, BlockType], shapes: Mapping[str, tuple[int, ...]], architecture: str = "x86_64"
) -> int:
    """Bytes of the weights that the engine copies into its faster layout at load.

    Args:
        types: Block type of every tensor.
        shapes: Shape of every tensor.
        architecture: The processor's, as `Machine.architecture` names it.

    Returns:
        Bytes of all copies; a tied embedding is copied too, as the output head it also is.
    """
    is_tied = OUTPUT not in types
    return sum(
        copied_bytes(name, kind, shapes[name], is_tied=is_tied, architecture=architecture)
        for name, kind in types.items()
    )


def copied_bytes(
    name: str, kind: BlockType, shape: tuple[int, ...], *, is_tied: bool, architecture: str = "x86_64"
) -> int:
    """Bytes of the copy that the engine makes of one tensor, see `repacked_bytes`; 0 if it makes none.

    Copied are operands of products: matrices, and the stacked matrices of experts. Rows that are looked up are not, nor
    other stacks, such as the heads of latent attention.
    """
    if kind.name not in REPACKED_TYPES.get(_canonical(architecture), frozenset()):
        return 0
    is_looked_up = name in LOOKED_UP and not (name == EMBEDDING and is_tied)
    is_product = len(shape) == 2 or (len(shape) == 3 and EXPERTS in name)
    if is_looked_up or not is_product or shape[-2] % REPACK_ROWS:
        return 0
    return math.prod(shape[:-1]) * kind.row_bytes(shape[-1])


def _canonical(architecture: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture.lower(), architecture.lower())
