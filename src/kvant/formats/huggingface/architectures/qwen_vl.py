"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, their text parts: Qwen2 and Qwen3 whose rotations count time, height and width."""

from dataclasses import replace

from kvant.formats.huggingface.architectures.experts import EXPERT_SHAPES, EXPERT_STEMS
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import EXPERTS
from kvant.formats.huggingface.architectures.names import ATTENTION_NAMES, QK_NORMS, Rule
from kvant.formats.huggingface.architectures.qwen import QWEN2, QWEN3, check_qwen2, no_dense_layers
from kvant.formats.huggingface.architectures.qwen_moe import EXPERT_LENGTH, ROUTER
from kvant.formats.huggingface.architectures.rope import check_whole_rotation, rope_sections
from kvant.formats.huggingface.architectures.transforms import inputs_along_columns, share
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, u32

_VISION = frozenset({
    "text_config", "vision_config", "image_token_id", "video_token_id", "vision_token_id", "vision_start_token_id",
    "vision_end_token_id", "mrope_section", "mrope_interleaved",
})  # fmt: skip
_ROPE_TYPES = frozenset({"default", "mrope", "linear", "yarn"})
QWEN3_SECTIONS = (24, 20, 20)
"""What transformers takes where config.json names none."""

_BOTH = inputs_along_columns("hidden_size").forward
TURNED_EXPERTS = (
    Rule("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", share(0, 2, of=_BOTH)),
    Rule("ffn_up_exps.weight", "mlp.experts.gate_up_proj", share(1, 2, of=_BOTH)),
    Rule("ffn_down_exps.weight", "mlp.experts.down_proj", inputs_along_columns("moe_intermediate_size")),
)
"""Experts stored with inputs along the rows, as published, or along the columns, as transformers 5 saves them.

Upstream turns both over, which makes the second useless.
"""


def check_sparse(config: Config) -> None:
    """Refuse what llama.cpp's qwen3vlmoe would compute differently."""
    check_whole_rotation(config)
    no_dense_layers(config, "qwen3vlmoe")


def sections(config: Config) -> dict[str, Value]:
    """Return how rotary pairs are shared out, which llama.cpp does not load without."""
    return {"rope.dimension_sections": rope_sections(config)}


def with_deepstack(config: Config) -> dict[str, Value]:
    """Return the same and how many layers take features of pictures in."""
    vision = config.get("vision_config", {})
    layers = vision.get("deepstack_visual_indexes", (8, 16, 24)) if isinstance(vision, dict) else ()
    return {
        "rope.dimension_sections": rope_sections(config, QWEN3_SECTIONS),
        "n_deepstack_layers": u32(len(layers) if isinstance(layers, (list, tuple)) else 0),
    }


QWEN2VL = replace(
    QWEN2,
    architecture="qwen2vl",
    classes=("Qwen2_5_VLForConditionalGeneration", "Qwen2VLForConditionalGeneration"),
    model_type="qwen2_5_vl_text",
    models="Qwen2-VL, Qwen2.5-VL (text part)",
    since="0.2",
    rope_types=_ROPE_TYPES,
    check=check_qwen2,
    computed=sections,
    entries=QWEN2.entries | _VISION,
    one_way="the class sees as well, and a GGUF holds the text part alone",
    defaults={
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "sliding_window": 4096, "max_window_layers": 80,
    },
)  # fmt: skip

QWEN3VL = replace(
    QWEN3,
    architecture="qwen3vl",
    classes=("Qwen3VLForConditionalGeneration",),
    model_type="qwen3_vl_text",
    models="Qwen3-VL, dense (text part)",
    since="0.2",
    rope_types=_ROPE_TYPES,
    computed=with_deepstack,
    entries=_VISION,
    one_way="the class sees as well, and a GGUF holds the text part alone",
    defaults={
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "head_dim": 128, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0, "tie_word_embeddings": False,
    },
)  # fmt: skip

QWEN3VLMOE = Family(
    architecture="qwen3vlmoe",
    classes=("Qwen3VLMoeForConditionalGeneration",),
    model_type="qwen3_vl_moe_text",
    models="Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text part)",
    rope_types=_ROPE_TYPES,
    names={**ATTENTION_NAMES, **QK_NORMS, **ROUTER},
    rules=TURNED_EXPERTS,
    required=(*ATTENTION_NAMES, *QK_NORMS, *EXPERT_STEMS),
    shapes=EXPERT_SHAPES,
    bias_flags=QWEN3.bias_flags,
    experts=EXPERTS,
    keys=(EXPERT_LENGTH,),
    check=check_sparse,
    computed=with_deepstack,
    entries=_VISION | {"norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"},
    one_way="the class sees as well, and a GGUF holds the text part alone",
    computes_head_dim=True,
    defaults={
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "moe_intermediate_size": 1408, "num_experts": 60,
        "num_experts_per_tok": 4, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
)  # fmt: skip
