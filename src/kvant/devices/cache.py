"""Bytes that the engine keeps per token of context, layer by layer: keys and values, latents, recurrent states.

    keys and values    cells * (heads of keys * width + heads of values * width) * 2 bytes
    sliding window     the same, but only for the cells of the window and of one batch
    latent attention   cells * one compressed key; values are a part of it and take nothing
    recurrent layer    a state of fixed size in F32 for every sequence, whatever the context

Which layers slide and which are recurrent is decided by the architecture, not by the metadata alone: a file may name a
window that the engine ignores (`mistral`, `phi3`).

Sources, llama.cpp b11549: `src/models/*.cpp` (`load_arch_hparams`), `llama-hparams.cpp` (`set_swa_pattern`, `n_embd_r`,
`n_embd_s`, `has_kv`), `llama-model.cpp` (`create_memory`), `llama-kv-cache-iswa.cpp`. Checked against the buffers that
the engine says it makes in tests/e2e/test_cache_prediction.py.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

BATCH_TOKENS = 512
CELLS_MULTIPLE = 256
F16_BYTES, F32_BYTES = 2, 4
MAX_LAYERS = 512
"""Of the engine (`LLAMA_MAX_LAYERS`): a file may say any number."""


class Hyperparameters(Protocol):
    """What is asked of a model here."""

    @property
    def architecture(self) -> str: ...  # noqa: D102
    def get(self, key: str, default: object = None) -> object: ...  # noqa: D102
    def hyper(self, key: str, default: int | None = None) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which layers of an architecture attend over a sliding window.

    Attributes:
        period: Every so-manieth layer attends to everything, the last of each period, unless the model says otherwise;
            0 where only the model says which.
        is_dense_first: It is the first of each period instead.
        default: Tokens of the window where the model names none; 0 for no window then.
        fixed: Tokens of the window that the engine takes whatever the model names; 0 for the model's.
        layers: The one number of layers that has windows; 0 for any.
    """

    period: int
    is_dense_first: bool = False
    default: int = 0
    fixed: int = 0
    layers: int = 0


WINDOWS = {
    "afmoe": Window(period=4), "cohere2": Window(period=4), "cohere2moe": Window(period=4, is_dense_first=True),
    "dots3note": Window(period=0), "exaone-moe": Window(period=4, default=128),
    "exaone4": Window(period=4, default=4096, layers=64), "gemma2": Window(period=2, default=4096),
    "gemma3": Window(period=6), "gemma3n": Window(period=5), "gemma4": Window(period=0), "gpt-oss": Window(period=2),
    "granite_swa": Window(period=0), "laguna": Window(period=4, is_dense_first=True),
    "lfm2": Window(period=1), "lfm2moe": Window(period=1), "llama4": Window(period=4, default=8192, fixed=8192),
    "maple": Window(period=0), "mellum": Window(period=4), "mimo2": Window(period=0), "muse-glimmer": Window(period=4),
    "olmo2": Window(period=4), "plamo3": Window(period=8),
    "smallthinker": Window(period=4, is_dense_first=True, fixed=4096), "spark2_5": Window(period=0),
    "step35": Window(period=0),
}  # fmt: skip
"""Of every other architecture the engine attends to everything, whatever window the metadata names."""

ALL_SLIDE = frozenset({"lfm2", "lfm2moe"})
"""Here a window holds for all layers with attention; it is rare that one is named."""

WITHOUT_CACHE = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "wavtokenizer-dec",
    "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
})  # fmt: skip
"""They read a whole text at once and keep nothing of it."""

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
BY_HEADS = frozenset({
    "bailingmoe3", "granitehybrid", "jamba", "kimi-linear", "kimi-k3", "glm5-next", "lfm2", "lfm2moe", "plamo2",
    "nemotron_h", "nemotron_h_moe",
})  # fmt: skip
"""A layer without heads of keys is recurrent (of Nemotron-H only one without a feed-forward part, too)."""

BY_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
"""Every so-manieth layer has attention, unless the model says otherwise; all others are recurrent."""

BOTH = frozenset({"falcon-h1"})
"""Every layer has attention and a state."""

_SHARED_FROM = {"gemma3n": 20}
"""Layers from here on read the keys and values of an earlier one."""


def cache_bytes(model: Hyperparameters, context: int) -> int:
    """Bytes of all that one sequence keeps: keys and values in F16, recurrent states in F32."""
    if model.architecture in WITHOUT_CACHE:
        return 0
    states = int(np.sum(recurrent_layers(model))) * _state_bytes(model)
    return states + _key_value_bytes(model, context)


def recurrent_layers(model: Hyperparameters) -> np.ndarray:
    """Which layers keep a state of fixed size, bool [layers that are run]."""
    n, name = layers_run(model), model.architecture
    if name in RECURRENT or name in BOTH:
        return np.ones(n, bool)
    if name in BY_INTERVAL:
        said = model.get(f"{name}.attention.recurrent_layers")
        if said is not None and np.size(np.asarray(said)) >= n:
            return np.ravel(np.asarray(said))[:n].astype(bool)
        every = max(1, number(model, "full_attention_interval", BY_INTERVAL[name]))
        return np.asarray((np.arange(n) + 1) % every != 0)
    if name in BY_HEADS:
        without_heads = np.asarray(per_layer(model, "attention.head_count_kv", _heads(model)))[:n] == 0
        return np.array(without_heads & ~_only_feed_forward(model)[:n])
    return np.zeros(n, bool)


def sliding_layers(model: Hyperparameters) -> tuple[np.ndarray, int]:
    """Which layers attend over a window, bool [layers that are run], and its length in tokens; 0 if none does."""
    n, none = layers_run(model), (np.zeros(layers_run(model), bool), 0)
    window = WINDOWS.get(model.architecture)
    if window is None or (window.layers and n != window.layers):
        return none
    said = model.get(f"{model.architecture}.attention.sliding_window")
    tokens = window.default if said is None else number(model, "attention.sliding_window", 0)
    tokens = window.fixed or tokens if tokens else 0
    if not tokens:
        return none
    if model.architecture in ALL_SLIDE:
        return np.ones(n, bool), tokens
    pattern = model.get(f"{model.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, (list, tuple, np.ndarray)):
        flags = np.zeros(n, bool)
        flags[: len(pattern)] = np.asarray(pattern, bool)[:n]
        return flags, tokens
    period = int(pattern) if isinstance(pattern, int) else window.period
    if period <= 0:
        return (np.ones(n, bool) if isinstance(pattern, int) else none[0]), tokens
    place = np.arange(n) % period
    return (place != 0 if window.is_dense_first else place < period - 1), tokens


def layers_run(model: Hyperparameters) -> int:
    """Layers that generate text: those that only predict further tokens, at the end, are loaded for nothing."""
    n = _layers(model)
    ahead = number(model, "nextn_predict_layers", 0)
    return n - ahead if 0 < ahead < n else n


def per_layer(model: Hyperparameters, key: str, default: int) -> list[int]:
    """A hyperparameter of every layer, whether the model gives one number or a list."""
    n_layers = _layers(model)
    value = np.ravel(np.asarray(model.get(f"{model.architecture}.{key}", default)))
    if value.dtype.kind not in "iuf" or not value.size:
        value = np.array([default])
    return [int(v) for v in (value if len(value) == n_layers else np.repeat(value[:1], n_layers))]


def number(model: Hyperparameters, key: str, default: int = 0) -> int:
    """An integer hyperparameter, the largest where it is per layer; the default where a file holds no number there."""
    value = np.asarray(model.get(f"{model.architecture}.{key}", default))
    return max(0, int(value.max())) if value.dtype.kind in "iuf" and value.size else default


def padded_cells(tokens: int) -> int:
    """Cells that the engine makes for so many tokens."""
    return -(-tokens // CELLS_MULTIPLE) * CELLS_MULTIPLE


def _key_value_bytes(model: Hyperparameters, context: int) -> int:
    n, cells = layers_run(model), padded_cells(context)
    slides, window = sliding_layers(model)
    in_window = min(cells, padded_cells(window + min(context, BATCH_TOKENS)))
    heads = np.asarray(per_layer(model, "attention.head_count_kv", _heads(model)), np.int64)[:n]
    width = np.array([_width(model, slides=bool(s)) for s in slides], np.int64)
    cells_of = np.where(slides, in_window, cells)
    return int(np.sum(heads * width * cells_of * _has_cache(model))) * F16_BYTES


def _has_cache(model: Hyperparameters) -> np.ndarray:
    """Which layers keep keys and values of their own, bool [layers that are run]."""
    n, name = layers_run(model), model.architecture
    if name in RECURRENT:
        return np.zeros(n, bool)
    own = np.ones(n, bool)
    own[max(0, _SHARED_FROM.get(name, n)) :] = False
    own[max(0, n - number(model, "attention.shared_kv_layers", 0)) :] = False
    if name not in BOTH:
        own &= ~recurrent_layers(model)
    return np.array(own & ~_only_feed_forward(model)[:n])


def _only_feed_forward(model: Hyperparameters) -> np.ndarray:
    """Which layers are nothing but a feed-forward part, bool [layers]: in Nemotron-H that is a layer of its own."""
    if not model.architecture.startswith("nemotron_h"):
        return np.zeros(_layers(model), bool)
    return np.asarray(per_layer(model, "feed_forward_length", 0)) > 0


def _width(model: Hyperparameters, *, slides: bool) -> int:
    """Weights of the key and the value of one head; of latent attention the key alone, which holds the value."""
    keys, values = (
        number(model, f"attention.{part}_swa", _head_width(model, part)) if slides else _head_width(model, part)
        for part in ("key_length", "value_length")
    )
    return keys if number(model, "attention.key_length_mla") else keys + values


def _state_bytes(model: Hyperparameters) -> int:
    """Bytes of the state of one recurrent layer: of its convolution and of its sums."""
    hidden = number(model, "embedding_length", 0)
    if (head := number(model, "wkv.head_size", 0)) > 0:
        return (number(model, "token_shift_count", 2) * hidden + hidden * head) * F32_BYTES
    if (taps := number(model, "shortconv.l_cache", 0)) > 0:
        return (taps - 1) * hidden * F32_BYTES
    taps = max(1, number(model, "ssm.conv_kernel", 1))
    if (head := number(model, "kda.head_dim", 0)) > 0:
        return (3 * (taps - 1) * _heads(model) * head + head * head * _heads(model)) * F32_BYTES
    if model.architecture == "minimax-01":
        return _head_width(model, "key_length") ** 2 * _heads(model) * F32_BYTES
    state, inner = number(model, "ssm.state_size", 0), number(model, "ssm.inner_size", 0)
    return ((taps - 1) * (inner + 2 * number(model, "ssm.group_count", 0) * state) + state * inner) * F32_BYTES


def _heads(model: Hyperparameters) -> int:
    return number(model, "attention.head_count", 1)


def _head_width(model: Hyperparameters, key: str) -> int:
    """Weights per head of keys or values; hidden size by heads where the model does not say."""
    return number(model, f"attention.{key}", number(model, "embedding_length", 0) // max(1, _heads(model)))


def _layers(model: Hyperparameters) -> int:
    return min(number(model, "block_count", 0), MAX_LAYERS)
