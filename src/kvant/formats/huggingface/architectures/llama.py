"""Llama and what shares its layout: SmolLM2, TinyLlama, Llama 3.x with its rotary factors, Mistral."""

import dataclasses

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.hyper import has
from kvant.formats.huggingface.architectures.llama3_rope import llama3_entries, llama3_factors
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, LLAMA_FLAGS, MLP_BIASES
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import ROTARY
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, u32


def llama_computed(config: Config) -> dict[str, Value]:
    """Return what upstream writes of every Llama-like model."""
    return {"vocab_size": u32(config.integer("vocab_size")), "rope.dimension_count": u32(config.head_dim)}


LLAMA = Family(
    architecture="llama",
    classes=("LlamaForCausalLM",),
    model_type="llama",
    models="Llama 2 and 3.x, SmolLM2, TinyLlama",
    since="0.1",
    rope_types=frozenset({"default", "linear", "yarn", "llama3"}),
    transforms=ROTARY,
    computed=llama_computed,
    extra_tensors=llama3_factors,
    config=llama3_entries,
    holds=lambda model: not has(model, "expert_count"),
    computes_head_dim=True,
    check=check_whole_rotation,
    bias_flags=LLAMA_FLAGS,
    engine_biases=frozenset((*ATTENTION_BIASES, *MLP_BIASES)),
    defaults={
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
)  # fmt: skip

MISTRAL = dataclasses.replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    model_type="mistral",
    models="Mistral 7B, Nemo",
    entries=frozenset({"sliding_window"}),
    bias_flags={},
    unseen_window=lambda config: config.integer("sliding_window") if config.get("sliding_window") else None,
    defaults={
        "vocab_size": 32000, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "num_key_value_heads": 8,
        "tie_word_embeddings": False, "sliding_window": 4096,
    },
)  # fmt: skip
