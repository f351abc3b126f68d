"""Predict the memory a model takes while it runs, from its hyperparameters and its file size alone.

    total = weights + repacked weights + KV cache + compute buffers + engine

The terms are llama.cpp's: a mapped file is resident once it was read; weights in a few types are copied into a faster
layout at load; keys and values are F16 for every cell of the context, or of the window where attention slides; a
batch of up to 512 tokens is computed at a time. Checked against the resident set of the real engine in
tests/e2e/test_ram_prediction.py; the figures are in docs/explanation/choosing.md.

Sources: llama.cpp `llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp` (window cells), `repack.cpp`
(`ggml_repack_get_optimal_repack_type`), `llama-hparams.cpp` (`set_swa_pattern`), read at b11434.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np

from kvant.dtypes import BlockType

BATCH_TOKENS = 512
CELLS_MULTIPLE = 256
F16_BYTES = 2
F32_BYTES = 4
# Measured with xllamacpp 2026.10.11549 on Linux: the process before a model is open, and its tokenizer's tables
# (25.2 MB for the 49,152 tokens and 48,900 merges of SmolLM2).
ENGINE_BYTES = 42_000_000
BYTES_PER_TOKEN_ENTRY = 512
# Vectors per token that are live at the widest moment of a layer, and bytes of the attention mask per token and cell;
# fitted to SmolLM2-135M at contexts from 512 to 8192 with the same engine.
LIVE_FEED_FORWARD, LIVE_HIDDEN, MASK_BYTES = 3, 4, 3

# Architectures whose attention slides over a window in all but every n-th layer, unless the model says otherwise.
# Source: llama.cpp b11434 src/models/{gemma2,gemma3,gemma3n}.cpp `load_swa_pattern`.
WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5}

# Types that the engine keeps a second time in a layout for its fastest kernels, by processor; rows in eights.
REPACKED_TYPES = {
    "x86_64": frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
    "aarch64": frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"}),
}
REPACK_ROWS = 8
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


class Hyperparameters(Protocol):
    """What is asked of a model here."""

    @property
    def architecture(self) -> str: ...  # noqa: D102
    def get(self, key: str, default: object = None) -> object: ...  # noqa: D102
    def hyper(self, key: str, default: int | None = None) -> int: ...  # noqa: D102


class RamPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted memory of a running model, in bytes.

    Attributes:
        context: Tokens of context it holds for.
        weights_bytes: The file, mapped.
        repacked_bytes: Copies of weights in the engine's faster layout.
        kv_cache_bytes: Keys and values.
        compute_bytes: Activations of one batch and attention scores.
        engine_bytes: The program itself and its vocabulary tables.
        total_bytes: All of it.
    """

    context: int
    weights_bytes: int
    repacked_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    engine_bytes: int
    total_bytes: int


def predict_ram(
    model: Hyperparameters, size_bytes: int, context: int, *, repacked: int = 0, batch: int = BATCH_TOKENS
) -> RamPrediction:
    """Predict the memory of a variant.

    Args:
        model: The model, for its hyperparameters.
        size_bytes: Size of the variant's file.
        context: Tokens of context.
        repacked: Bytes of its weights that the engine copies, from `repacked_bytes`.
        batch: Tokens that are read at once.

    Returns:
        The prediction; on the reference model within 10 % of the measured resident set.
    """
    kv, engine = kv_cache_bytes(model, context), engine_bytes(model)
    compute = compute_bytes(model, context, batch)
    return RamPrediction(
        context=context,
        weights_bytes=size_bytes,
        repacked_bytes=repacked,
        kv_cache_bytes=kv,
        compute_bytes=compute,
        engine_bytes=engine,
        total_bytes=size_bytes + repacked + kv + compute + engine,
    )


def kv_cache_bytes(model: Hyperparameters, context: int) -> int:
    """Bytes of keys and values, F16, at a context; layers with a sliding window hold the window and one batch."""
    cells = _padded(context)
    window = int(np.max(np.asarray(model.get(f"{model.architecture}.attention.sliding_window", 0))))
    window_cells = min(cells, _padded(window + min(context, BATCH_TOKENS))) if window else cells
    heads_kv = _per_layer(model, "attention.head_count_kv", model.hyper("attention.head_count", 1))
    width = _head_width(model, "key_length") + _head_width(model, "value_length")
    slides = _slides(model, len(heads_kv))
    cells_of = np.where(slides, window_cells, cells)
    return int(np.sum(np.asarray(heads_kv) * cells_of)) * width * F16_BYTES


def compute_bytes(model: Hyperparameters, context: int, batch: int = BATCH_TOKENS) -> int:
    """Bytes of one batch with flash attention: its activations at their widest, and the mask over the context.

    A larger batch than usual is read for a vector of a text; the engine then computes the logits of every token too,
    where the model has an output head.
    """
    n_logits = _n_vocabulary(model) if batch > BATCH_TOKENS and "bert" not in model.architecture else 0
    batch = min(context, batch)
    hidden = model.hyper("embedding_length", 0)
    feed_forward = model.hyper("feed_forward_length", 4 * hidden)
    activations = F32_BYTES * (LIVE_FEED_FORWARD * feed_forward + LIVE_HIDDEN * hidden + n_logits)
    return batch * (activations + MASK_BYTES * _padded(context))


def engine_bytes(model: Hyperparameters) -> int:
    """Bytes of the program and of the tables it builds from the vocabulary."""
    return ENGINE_BYTES + BYTES_PER_TOKEN_ENTRY * _n_vocabulary(model)


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
    """Bytes of the copy that the engine makes of one tensor, see `repacked_bytes`; 0 if it makes none."""
    is_matrix = len(shape) == 2 and (name != EMBEDDING or is_tied)
    is_copied = kind.name in REPACKED_TYPES.get(_canonical(architecture), frozenset())
    return shape[0] * kind.row_bytes(shape[1]) if is_matrix and is_copied and shape[0] % REPACK_ROWS == 0 else 0


def _canonical(architecture: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture.lower(), architecture.lower())


def _padded(cells: int) -> int:
    return -(-cells // CELLS_MULTIPLE) * CELLS_MULTIPLE


def _head_width(model: Hyperparameters, key: str) -> int:
    """Weights per head of keys or values; hidden size by heads where the model does not say."""
    heads = max(1, model.hyper("attention.head_count", 1))
    return model.hyper(f"attention.{key}", model.hyper("embedding_length", 0) // heads)


def _per_layer(model: Hyperparameters, key: str, default: int) -> list[int]:
    """A hyperparameter of every layer, whether the model gives one number or a list."""
    n_layers = model.hyper("block_count", 0)
    value = np.ravel(np.asarray(model.get(f"{model.architecture}.{key}", default)))
    return [int(v) for v in (value if len(value) == n_layers else np.repeat(value[:1], n_layers))]


def _slides(model: Hyperparameters, n_layers: int) -> np.ndarray:
    """Which layers attend over a sliding window, bool [n_layers]."""
    pattern = model.get(f"{model.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, (list, tuple, np.ndarray)) and len(pattern) == n_layers:
        return np.asarray(pattern, bool)
    period = int(pattern) if isinstance(pattern, int) else WINDOW_PERIODS.get(model.architecture, 1)
    return np.arange(n_layers) % max(1, period) < period - 1
