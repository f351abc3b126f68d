"""Every kind of projector that kvant writes: the one list.

Source: upstream's converter (`conversion/smolvlm.py`, `qwen3vl.py`, `llava.py`, `lfm2.py`, `gemma.py`), read at the
release in tools/upstream_converter.py; tensors and metadata are proved equal in tests/golden/test_projectors.py.
"""

import math

import numpy as np

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.transforms import ROTARY
from kvant.formats.huggingface.config import Config, shown
from kvant.formats.huggingface.lazy import reshaped, selected
from kvant.formats.huggingface.projectors.table import SIGLIP, Change, Eyes, Source, epsilon, plus_one, side
from kvant.metadata import Value, ValueType, array, boolean, u32
from kvant.tensors import LazyTensor, Tensor

ACTIVATIONS = {"silu": "clip.use_silu", "gelu": "clip.use_gelu"}
GELU = {"clip.use_gelu": boolean(True)}
CHANNELS = 3


def _scale(value: int) -> dict[str, Value]:
    return {"clip.vision.projector.scale_factor": u32(value)}


def _idefics3(source: Source) -> dict[str, Value]:
    size = source.pictures.get("size")
    longest = size.get("longest_edge") if isinstance(size, dict) else None
    edge = Config(values={"longest_edge": longest}, path=source.pictures.path)
    return (
        epsilon(source.vision, 1e-5)
        | _scale(source.whole.integer("scale_factor", 2))
        | GELU
        | {"clip.vision.preproc_image_size": u32(edge.integer("longest_edge", side(source.vision, "image_size")))}
    )


IDEFICS3 = Eyes(
    kind="idefics3",
    classes=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    models="SmolVLM, SmolVLM2, Idefics3",
    outside={
        "mm.model.fc": "connector.modality_projection.proj",
        "v.patch_embd": "vision_model.embeddings.patch_embedding",
        "v.position_embd": "vision_model.embeddings.position_embedding", "v.post_ln": "vision_model.post_layernorm",
    },
    block="vision_model.encoder.layers.",
    names=SIGLIP,
    keys=_idefics3,
    defaults={"smolvlm_vision": {"hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 3072}},
    always_f32=("v.position_embd", "v.patch_embd"),
)  # fmt: skip

MERGER = {"linear_fc1": "mm.0", "linear_fc2": "mm.2", "norm": "v.post_ln"}
DEEP = {"linear_fc1": "fc1", "linear_fc2": "fc2", "norm": "norm"}
PATCHES = "v.patch_embd"
FRAME_0, FRAME_1 = "first frame", "second frame"


def _deep(source: Source) -> list[int]:
    found = source.vision.items("deepstack_visual_indexes") or []
    layers = source.vision.integer("depth")
    if not all(isinstance(layer, int) and 0 <= layer < layers for layer in found):
        raise FormatError(
            f"{source.vision.path}: deepstack_visual_indexes is {shown(found)}, not layers below {layers}. Correct it."
        )
    return found


def _qwen_places(stem: str, suffix: str, source: Source) -> tuple[tuple[str, str], ...]:
    if stem == "visual.patch_embed.proj":
        first, second = (FRAME_0, PATCHES + suffix), (FRAME_1, f"{PATCHES}{suffix}.1")
        return (first, second) if suffix == ".weight" else (("", PATCHES + suffix),)
    head, _, rest = stem.removeprefix("visual.deepstack_merger_list.").partition(".")
    layers = _deep(source)
    is_deep = stem.startswith("visual.deepstack_merger_list.") and rest in DEEP
    if is_deep and head.isdecimal() and int(head) < len(layers):
        return (("", f"v.deepstack.{layers[int(head)]}.{DEEP[rest]}{suffix}"),)
    return ()


def _frame(number: int) -> Change:
    def taken(tensor: Tensor, config: Config) -> LazyTensor:
        if len(tensor.shape) != 5:
            raise FormatError(
                f"{tensor.name}: shape {list(tensor.shape)} has not 5 axes. Take the model's own weights."
            )
        out, channels, frames, rows, columns = tensor.shape
        if frames != 2:
            raise UnsupportedModelError(
                f"{config.path}: temporal_patch_size is {frames}, but llama.cpp reads two frames. Such a projector "
                "cannot be stored as GGUF."
            )
        flat = reshaped(tensor, (out * channels, frames * rows, columns))
        return reshaped(selected(flat, np.arange(rows) + number * rows), (out, channels, rows, columns))

    return taken


def _qwen3vl(source: Source) -> dict[str, Value]:
    deep = np.isin(np.arange(source.vision.integer("depth")), _deep(source))
    return (
        GELU
        | {"clip.vision.spatial_merge_size": u32(source.vision.integer("spatial_merge_size"))}
        | epsilon(Config(values={"layer_norm_eps": source.text.get("rms_norm_eps")}, path=source.text.path), 1e-6)
        | {"clip.vision.is_deepstack_layers": array(ValueType.BOOL, deep)}
    )


QWEN3VL = Eyes(
    kind="qwen3vl_merger",
    classes=(
        "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    ),
    models="Qwen3-VL, Qwen3.5",
    outside={"v.position_embd": "visual.pos_embed"} | {ours: f"visual.merger.{name}" for name, ours in MERGER.items()},
    block="visual.blocks.",
    names={
        "ln1": "norm1", "ln2": "norm2", "attn_qkv": "attn.qkv", "attn_out": "attn.proj", "ffn_up": "mlp.linear_fc1",
        "ffn_down": "mlp.linear_fc2",
    },
    skipped=("language_model.", "lm_head.", "mtp."),
    places=_qwen_places,
    changes={FRAME_0: _frame(0), FRAME_1: _frame(1)},
    keys=_qwen3vl,
    layers="depth",
    heads="num_heads",
    image_size=lambda source: int(
        math.sqrt(source.vision.integer("num_position_embeddings", 2304)) * side(source.vision, "patch_size")
    ),
)  # fmt: skip


def _pixtral(source: Source) -> dict[str, Value]:
    activation = source.vision.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{source.vision.path}: hidden_act is {shown(activation)}, but llama.cpp's pixtral computes silu and gelu. "
            "Such a projector cannot be stored as GGUF."
        )
    found = epsilon(source.vision, 1e-5) | {ACTIVATIONS[activation]: boolean(True)}
    if source.whole.get("spatial_merge_size") is not None:
        found["clip.vision.spatial_merge_size"] = u32(source.whole.integer("spatial_merge_size"))
    return found


PIXTRAL = Eyes(
    kind="pixtral",
    classes=("Mistral3ForConditionalGeneration", "LlavaForConditionalGeneration"),
    models="Pixtral, Mistral Small 3.1 and 3.2, Ministral 3",
    outside={
        "mm.1": "multi_modal_projector.linear_1", "mm.2": "multi_modal_projector.linear_2",
        "mm.input_norm": "multi_modal_projector.norm",
        "mm.patch_merger": "multi_modal_projector.patch_merger.merging_layer", "v.pre_ln": "vision_tower.ln_pre",
        "v.patch_embd": "vision_tower.patch_conv",
    },
    block="vision_tower.transformer.layers.",
    names={
        "attn_k": "attention.k_proj", "attn_out": "attention.o_proj", "attn_q": "attention.q_proj",
        "attn_v": "attention.v_proj", "ln1": "attention_norm", "ffn_down": "feed_forward.down_proj",
        "ffn_gate": "feed_forward.gate_proj", "ffn_up": "feed_forward.up_proj", "ln2": "ffn_norm",
    },
    changes={"attn_q": ROTARY["attn_q"].forward, "attn_k": ROTARY["attn_q"].forward},
    keys=_pixtral,
    token=("v.token_embd.img_break", "[IMG_BREAK]"),
    encoder="pixtral",
)  # fmt: skip

SIGLIP_OUTSIDE = {
    "v.patch_embd": "vision_tower.embeddings.patch_embedding",
    "v.position_embd": "vision_tower.embeddings.position_embedding", "v.post_ln": "vision_tower.post_layernorm",
}  # fmt: skip


def patches(tensor: Tensor, config: Config) -> LazyTensor:
    """Patches as a convolution: [out, rows * columns * channels] to [out, channels, rows, columns]."""
    if len(tensor.shape) < 2:
        return selected(tensor, np.arange(tensor.shape[0]))
    out, edge = tensor.shape[0], side(config, "patch_size")
    if tensor.shape[1] != edge * edge * CHANNELS:
        raise FormatError(
            f"{tensor.name}: rows of {tensor.shape[1]} are no patches of {edge} pixels. Check patch_size."
        )
    flat = reshaped(tensor, (out * edge * edge * CHANNELS, 1))
    order = np.arange(edge * edge * CHANNELS).reshape(edge, edge, CHANNELS).transpose(2, 0, 1).reshape(-1)
    taken = selected(reshaped(flat, (out, edge * edge * CHANNELS, 1)), order)
    return reshaped(taken, (out, CHANNELS, edge, edge))


LFM2 = Eyes(
    kind="lfm2",
    classes=("Lfm2VlForConditionalGeneration",),
    models="LFM2-VL, LFM2.5-VL",
    outside=SIGLIP_OUTSIDE
    | {
        "mm.input_norm": "multi_modal_projector.layer_norm", "mm.1": "multi_modal_projector.linear_1",
        "mm.2": "multi_modal_projector.linear_2",
    },
    block="vision_tower.encoder.layers.",
    names=SIGLIP,
    ignored=("vision_tower.head.",),
    changes={"v.patch_embd": patches},
    keys=lambda source: (
        epsilon(source.vision, 1e-6) | _scale(source.whole.integer("downsample_factor", 2)) | GELU | _blocks(source)
    ),
    image_size=lambda _: 256,
)  # fmt: skip


def _blocks(source: Source) -> dict[str, Value]:
    """Return the blocks that count: those up to the layer whose features are taken, from the end as Python counts."""
    layer = source.whole.get("vision_feature_layer", -1)
    left = -(layer + 1) if isinstance(layer, int) else -1
    if not 0 <= left < source.vision.n_layers:
        raise FormatError(
            f"{source.whole.path}: vision_feature_layer is {shown(layer)}, no layer from the end. Correct it."
        )
    return {"clip.vision.block_count": u32(source.vision.n_layers - left)}


def _gemma3(source: Source) -> dict[str, Value]:
    tokens = source.pictures.integer("image_seq_length", 256)
    edge = side(source.vision, "image_size") // side(source.vision, "patch_size") // math.isqrt(tokens)
    return epsilon(source.vision, 1e-6) | GELU | (_scale(edge) if edge not in (0, 4) else {})


GEMMA3 = Eyes(
    kind="gemma3",
    classes=("Gemma3ForConditionalGeneration",),
    models="Gemma 3 4B, 12B and 27B",
    outside=SIGLIP_OUTSIDE
    | {
        "mm.input_projection": "multi_modal_projector.mm_input_projection_weight",
        "mm.soft_emb_norm": "multi_modal_projector.mm_soft_emb_norm",
    },
    block="vision_tower.encoder.layers.",
    names=SIGLIP,
    ignored=("vision_tower.head.",),
    changes={"mm.soft_emb_norm": plus_one},
    keys=_gemma3,
    always_f16=("mm.input_projection",),
    always_f32=("v.position_embd", "v.patch_embd"),
)  # fmt: skip

GEMMA4 = Eyes(
    kind="gemma4v",
    classes=("Gemma4ForConditionalGeneration",),
    models="Gemma 4 26B-A4B and 31B",
    outside={
        "mm.input_projection": "embed_vision.embedding_projection",
        "v.patch_embd": "vision_tower.patch_embedder.input_proj",
        "v.position_embd": "vision_tower.patch_embedder.position_embedding_table",
    },
    block="vision_tower.encoder.layers.",
    names={
        "ln1": "input_layernorm", "ffn_down": "mlp.down_proj.linear", "ffn_gate": "mlp.gate_proj.linear",
        "ffn_up": "mlp.up_proj.linear", "attn_post_norm": "post_attention_layernorm",
        "ffn_post_norm": "post_feedforward_layernorm", "ln2": "pre_feedforward_layernorm",
        "attn_k_norm": "self_attn.k_norm", "attn_q_norm": "self_attn.q_norm", "attn_k": "self_attn.k_proj.linear",
        "attn_out": "self_attn.o_proj.linear", "attn_q": "self_attn.q_proj.linear",
        "attn_v": "self_attn.v_proj.linear",
    },
    changes={"v.patch_embd": patches},
    keys=lambda source: epsilon(source.vision, 1e-6),
    image_size=lambda _: 224,
    sense="vision.",
)  # fmt: skip

KINDS: tuple[Eyes, ...] = (IDEFICS3, QWEN3VL, PIXTRAL, LFM2, GEMMA3, GEMMA4)
BY_CLASS = {name: eyes for eyes in KINDS for name in eyes.classes}
