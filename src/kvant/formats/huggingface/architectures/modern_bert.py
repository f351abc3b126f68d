"""ModernBERT: layer norms, gated MLP, every third layer attends to everything, the others to a window around them.

Source: llama.cpp 0.3.36 `conversion/bert.py`, `src/models/modern-bert.cpp`; transformers 5.24 `ModernBertConfig`.
"""

from collections.abc import Mapping
from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.bert import computed as encoder_metadata
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.gpt2 import respelled
from kvant.formats.huggingface.architectures.keys import INTEGERS, Key, Kind
from kvant.formats.huggingface.architectures.pooling import CLS, MEAN, POOLED
from kvant.formats.huggingface.architectures.refusals import check_derived_head, check_values
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, string, u32

PERIOD = 3
NAMES = {
    "attn_norm": "attn_norm", "attn_qkv": "attn.Wqkv", "attn_output": "attn.Wo", "ffn_norm": "mlp_norm",
    "ffn_up": "mlp.Wi", "ffn_down": "mlp.Wo",
}  # fmt: skip
_SPELLINGS = {"global_rope_theta": "rope_theta", "local_rope_theta": "rope_local_base_freq"}


def _spelled(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return respelled(raw, _SPELLINGS)


def period(config: Config) -> int:
    """Return after how many layers one attends to everything, from the first on.

    Raises:
        UnsupportedModelError: `layer_types` has no such period.
    """
    found = config.integer("global_attn_every_n_layers", PERIOD)
    kinds = config.items("layer_types")
    if kinds is not None and [kind == "full_attention" for kind in kinds] != [
        layer % found == 0 for layer in range(config.n_layers)
    ]:
        raise UnsupportedModelError(
            f"{config.path}: layer_types is not full_attention at every {found}th layer from the first, which is all "
            f"that llama.cpp's modern-bert computes. Such a model cannot be stored as GGUF."
        )
    return found


def check(config: Config) -> None:
    """Refuse biases and pooling before the classifier that llama.cpp does not have."""
    check_derived_head(config, "modern-bert")
    period(config)
    check_values(config, "modern-bert", norm_bias=False, attention_bias=False, mlp_bias=False)
    if config.get("classifier_pooling", "cls") not in ("cls", "mean"):
        check_values(config, "modern-bert", classifier_pooling="cls")


def computed(config: Config) -> dict[str, Value]:
    """Return what an encoder has, and window, activation and pooling before a classifier."""
    found = {
        **encoder_metadata(config),
        "classifier.pooling_type": u32({"cls": CLS, "mean": MEAN}[config.get("classifier_pooling", "cls")]),
        "attention.sliding_window": u32(config.integer("local_attention")),
        "rope.scaling.type": string("none"),
        "vocab_size": u32(config.integer("vocab_size")),
        "hidden_activation": string(str(config.get("hidden_activation"))),
    }
    if config.get("global_attn_every_n_layers") is not None or period(config) != PERIOD:
        found["attention.sliding_window_pattern"] = u32(period(config))
    return found


MODERN_BERT = Family(
    architecture="modern-bert",
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    model_type="modernbert",
    models="ModernBERT and embeddings made from it",
    activation="gelu",
    rope_types=frozenset({"default"}),
    block="layers",
    names=NAMES,
    outside={
        "token_embd": "embeddings.tok_embeddings", "token_embd_norm": "embeddings.norm", "output_norm": "final_norm",
    },
    prefixes=("model.",),
    modules=POOLED,
    skipped=("head.", "decoder.", "classifier."),
    spelled=_spelled,
    ends=("token_embd", "token_embd_norm", "output_norm"),
    has_head=False,
    required=lambda _, layer: tuple(stem for stem in NAMES if layer or stem != "attn_norm"),
    shapes={
        "attn_qkv": ("3*hidden_size", "hidden_size"), "attn_output": ("hidden_size", "hidden_size"),
        "ffn_up": ("2*intermediate_size", "hidden_size"), "ffn_down": ("hidden_size", "intermediate_size"),
    },
    counts=INTEGERS[:4],
    epsilons=(
        Key("attention.layer_norm_rms_epsilon", "norm_eps", Kind.NUMBER),
        Key("attention.layer_norm_epsilon", "norm_eps|layer_norm_eps", Kind.NUMBER),
    ),
    engine_biases=frozenset(),
    check=check,
    computed=computed,
    entries=frozenset({
        *_SPELLINGS, "rope_local_base_freq", "local_attention", "global_attn_every_n_layers", "layer_types",
        "hidden_activation", "norm_bias", "classifier_pooling", "cls_token_id", "initializer_cutoff_factor",
        "embedding_dropout", "mlp_dropout", "decoder_bias", "classifier_bias", "classifier_activation",
        "deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "position_embedding_type",
        "reference_compile", "repad_logits_with_grad", "sliding_window",
    }),
    one_way="its pooling is in files of sentence-transformers, which a GGUF does not hold",
    defaults={
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "max_position_embeddings": 8192, "norm_eps": 1e-5, "local_attention": 128,
        "rope_theta": 160000.0, "rope_local_base_freq": 10000.0, "hidden_activation": "gelu",
    },
)  # fmt: skip
