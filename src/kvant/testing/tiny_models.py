"""Tiny random models of every family, written as Hugging Face directories: configuration, weights, a real tokenizer.

Small enough to convert, quantize and run in well under a second, and shaped so that every K-quant applies (rows are
multiples of 256). Only numpy and `tokenizers` are needed, so the writer is independent of the code under test.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

N_VOCAB = 512
"""Tokens in every tiny model."""

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": N_VOCAB,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip

_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(12)],
    "long_factor": [1.0 + 0.5 * i for i in range(12)],
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False},
    "llama3": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_ROPE, "head_dim": 32, "tie_word_embeddings": False,
    },
    "tinyllama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False},
    "mistral": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None, "head_dim": 64,
        "tie_word_embeddings": False,
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0],
        "no_rope_layer_interval": 4,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rope_theta": 1000000.0, "head_dim": 64,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 64,
        "num_key_value_heads": 2, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64,
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 16, "sliding_window_pattern": 6,
        "bos_token_id": 2, "eos_token_id": 1,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "original_max_position_embeddings": 2048,
        "sliding_window": 2047, "tie_word_embeddings": False,
    },
    "phi4": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.75, "rope_scaling": _LONGROPE,
        "sliding_window": None,
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_multiplier": 0.03125,
        "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 4.0,
    },
}  # fmt: skip
"""Overrides of the common configuration, by family name."""

_SPLITS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}  # fmt: skip

TOKENIZERS = {
    "llama": "smollm", "llama3": "llama3", "tinyllama": "spm", "mistral": "llama3", "smollm3": "llama3",
    "qwen2": "qwen2", "qwen3": "qwen2", "gemma3": "gemma", "phi3": "llama3", "phi4": "llama3", "granite": "smollm",
}  # fmt: skip
"""The kind of tokenizer each family gets."""

_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<s>", "</s>")
"""The last three are here because llama.cpp looks for them in models named phi3."""

PICTURE_TOKENS = (
    "<fake_token_around_image>", "<global-img>", "<image>", "\n\n",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)  # fmt: skip
"""What SmolVLM's processor puts around pictures; the engine looks them up. Of the kind of tokenizer `pictures`."""

_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_TEXT = """\
The quick brown fox jumps over the lazy dog while the rain in the hills keeps falling on the old stone bridge.
A model of a language is a table of what may follow what; a small model is a small table, and the art is in the losses.
def main(argv: list[str]) -> int:\n    total = 0\n    for index, item in enumerate(argv):\n        total += len(item)
Numbers such as 12, 345 and 6789 appear beside dates like 2024-11-05; the price was 3.50 and then 4.25 the week after.
Straße, façade, naïve, jalapeño, Ελλάδα, Москва, 日本語, 中文 and emoji share the page with the plain words of the text.
"""


def write_tiny_model(
    family: str, directory: Path, *, seed: int = 0, dtype: str = "BF16", tokenizer: str | None = None, **overrides: Any
) -> Path:
    """Write a tiny model of a family; the same arguments give the same bytes.

    Args:
        family: A key of `FAMILIES`.
        directory: Where to write; made if absent.
        seed: Seed of the weights.
        dtype: `BF16`, `F16` or `F32`.
        tokenizer: `smollm`, `pictures`, `llama3`, `qwen2`, `spm` or `gemma`; the family's own by default.
        overrides: Entries of config.json to change; None removes one.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    config = tiny_config(family, torch_dtype=names[dtype], **overrides)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    (directory / "generation_config.json").write_text(json.dumps(ids))
    write_tokenizer(directory, tokenizer or TOKENIZERS[family])
    write_safetensors(directory / "model.safetensors", dict(weights(config, seed)), dtype)
    return directory


def tiny_config(family: str, **overrides: Any) -> dict[str, Any]:
    """Return the config.json of a tiny model of a family, with `overrides` of its entries; None removes one."""
    config = {**_COMMON, **FAMILIES[family], **overrides}
    return {key: value for key, value in config.items() if value is not None or key == "sliding_window"}


def weights(config: dict[str, Any], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the random tensors of a configuration, float32, with the names and shapes transformers uses."""
    rng = np.random.default_rng(seed)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    model_type = config["model_type"]

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = rng.standard_normal((rows, columns)) * 0.8 / np.sqrt(columns)
        return np.asarray(values, np.float32)

    def norm(length: int) -> np.ndarray:
        # Steps of 1/64 survive a +1 and a -1 in float32 and are exact in BF16.
        centre = 0 if model_type.startswith("gemma") else 1
        return (centre + np.round(rng.uniform(-0.4, 0.4, length) * 64) / 64).astype(np.float32)

    scale = {"gemma3_text": 1.0, "granite": 1.0}.get(model_type, 4)  # these two multiply the embedding themselves
    yield "model.embed_tokens.weight", matrix(config["vocab_size"], hidden) * np.float32(scale)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield from ((prefix + name, value) for name, value in _attention(config, rng, matrix, norm))
        if model_type == "phi3":
            yield prefix + "mlp.gate_up_proj.weight", matrix(2 * ffn, hidden)
        else:
            yield prefix + "mlp.gate_proj.weight", matrix(ffn, hidden)
            yield prefix + "mlp.up_proj.weight", matrix(ffn, hidden)
        yield prefix + "mlp.down_proj.weight", matrix(hidden, ffn)
        names = ["input_layernorm", "post_attention_layernorm"]
        if model_type.startswith("gemma"):
            names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        yield from ((f"{prefix}{name}.weight", norm(hidden)) for name in names)
    yield "model.norm.weight", norm(hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", matrix(config["vocab_size"], hidden)


def _attention(
    config: dict[str, Any], rng: np.random.Generator, matrix: Any, norm: Any
) -> Iterator[tuple[str, np.ndarray]]:
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    model_type = config["model_type"]
    if model_type == "phi3":
        yield "self_attn.qkv_proj.weight", matrix((heads + 2 * kv_heads) * head_dim, hidden)
    else:
        for name, count in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            yield f"self_attn.{name}.weight", matrix(count * head_dim, hidden)
            if model_type == "qwen2" or config.get("attention_bias"):
                yield f"self_attn.{name}.bias", rng.uniform(-0.3, 0.3, count * head_dim).astype(np.float32)
    yield "self_attn.o_proj.weight", matrix(hidden, heads * head_dim)
    if config.get("attention_bias"):
        yield "self_attn.o_proj.bias", rng.uniform(-0.1, 0.1, hidden).astype(np.float32)
    if model_type.startswith(("qwen3", "gemma3")):
        yield "self_attn.q_norm.weight", norm(head_dim)
        yield "self_attn.k_norm.weight", norm(head_dim)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """Write float32 arrays as one safetensors file, rounded to `dtype` (BF16: to nearest, ties to even)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name in sorted(tensors):
        blob = encode(tensors[name], dtype)
        header[name] = {
            "dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [offset, offset + len(blob)],
        }  # fmt: skip
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Return the bytes of float32 values as F32, F16 or BF16."""
    if dtype == "BF16":
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if dtype == "F16" else np.float32).tobytes()


def write_tokenizer(directory: Path, kind: str) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` of a kind, see `write_tiny_model`."""
    (directory / "tokenizer.json").write_text(_tokenizer_json(kind), encoding="utf-8")
    bos, eos = {"spm": ("<s>", "</s>"), "gemma": ("<bos>", "<eos>")}.get(kind, (_SPECIALS[1], _SPECIALS[2]))
    config: dict[str, Any] = {
        "tokenizer_class": {"spm": "LlamaTokenizer", "gemma": "GemmaTokenizer"}.get(kind, "GPT2Tokenizer"),
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": "<unk>",
        "model_max_length": 2048,
        "chat_template": _TEMPLATE,
    }
    if kind in ("spm", "gemma"):
        config |= {"add_bos_token": True, "add_eos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


@functools.cache
def _tokenizer_json(kind: str) -> str:
    if kind == "spm":
        return _spm(kind, ["<unk>", "<s>", "</s>"]).to_str()
    if kind == "gemma":
        return _spm(kind, ["<pad>", "<eos>", "<bos>", "<unk>"]).to_str()
    if kind == "pictures":
        return _byte_level("smollm", [*_SPECIALS, *PICTURE_TOKENS]).to_str()
    return _byte_level(kind, list(_SPECIALS)).to_str()


def _byte_level(kind: str, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    if kind == "smollm":
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(_SPLITS[kind]), behavior="isolated")
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "llama3":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{specials[1]} $A", pair=f"{specials[1]} $A {specials[1]}:1 $B:1", special_tokens=[(specials[1], 1)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=specials, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(_TEXT.splitlines(keepends=True), trainer)
    return _filled(tokenizer)


def _spm(kind: str, specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if kind == "spm" else replace
    if kind == "gemma":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if kind == "spm" else steps)
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=N_VOCAB, special_tokens=specials + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator((line.replace(" ", " ▁") for line in _TEXT.splitlines()), trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in specials]
    document["model"]["merges"] = _all_splits(document["model"]["vocab"], specials + byte_tokens)
    return _filled(Tokenizer.from_str(json.dumps(document)))


def _all_splits(vocab: dict[str, int], whole: list[str]) -> list[list[str]]:
    """List every way to make a token of two others, as a SentencePiece model does: the earlier token merges first."""
    pieces = sorted(set(vocab) - set(whole), key=lambda piece: vocab[piece])
    return [
        [piece[:at], piece[at:]]
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]


def _filled(tokenizer: Tokenizer) -> Tokenizer:
    """Bring the vocabulary to `N_VOCAB` with added tokens, so that every model has the same size."""
    missing = N_VOCAB - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<|extra_{index}|>", normalized=False) for index in range(missing)])
    return tokenizer
