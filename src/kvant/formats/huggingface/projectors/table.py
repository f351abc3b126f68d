"""A kind of projector as a table: what its tensors are called here and there, which change, and its hyperparameters."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.config import MAX_LAYERS, Config, finite, shown
from kvant.formats.huggingface.lazy import shifted
from kvant.metadata import Value, ValueType, array, boolean, f32, string, u32
from kvant.tensors import LazyTensor, Tensor

Change = Callable[[Tensor, Config], LazyTensor]
SIGLIP = {
    "ln1": "layer_norm1", "ln2": "layer_norm2", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
}  # fmt: skip
"""Tensors of a block of SigLIP, which most projectors encode with."""

_THEIRS = re.compile(r"(.+?)\.(weight|bias)|(.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """What a projector's hyperparameters are read from.

    Attributes:
        whole: config.json.
        vision: Its vision_config.
        text: Its text_config over itself.
        pictures: What says how pictures are prepared.
    """

    whole: Config
    vision: Config
    text: Config
    pictures: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Eyes:
    """A kind of projector.

    Attributes:
        kind: What the engine calls it, `clip.projector_type`.
        classes: Classes in `architectures` of config.json.
        models: The models, in words.
        outside: Tensors outside the blocks: canonical stem to transformers' stem.
        block: What transformers calls the list of blocks.
        names: Tensors of a block: canonical stem to transformers' stem.
        skipped: Beginnings of tensors that are no part of the projector.
        ignored: Beginnings of tensors of the encoder that nobody reads.
        places: What a tensor becomes that no table of names says: stems of `changes` and names; by transformers' stem
            and the suffix.
        changes: What happens to a tensor, by canonical stem.
        keys: Hyperparameters beyond the common ones, in upstream's order.
        image_size, layers, heads: Where they stand in vision_config, or what they follow from.
        always_f16, always_f32: Tensors, by canonical stem, of that type whatever is asked for.
        defaults: Entries of vision_config that transformers assumes, by its `model_type`.
        sense: Prefix of `projector_type`: empty, or `vision.` in files that may hear, too.
        token: A token whose row of the language model's embedding is a tensor of the projector: its canonical name, and
            the token.
        encoder: `model_type` that vision_config must have; empty if the classes have no other.
    """

    kind: str
    classes: tuple[str, ...]
    models: str
    outside: Mapping[str, str]
    block: str
    names: Mapping[str, str]
    keys: Callable[[Source], dict[str, Value]]
    skipped: tuple[str, ...] = ("language_model.", "text_model.", "lm_head.")
    ignored: tuple[str, ...] = ()
    places: Callable[[str, str, Source], tuple[tuple[str, str], ...]] = lambda _stem, _suffix, _source: ()
    changes: Mapping[str, Change] = field(default_factory=dict)
    image_size: Callable[[Source], int] = lambda source: side(source.vision, "image_size")
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    always_f16: tuple[str, ...] = ()
    always_f32: tuple[str, ...] = ("v.position_embd",)
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sense: str = ""
    token: tuple[str, str] = ("", "")
    encoder: str = ""

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether the table is of a model's encoder, as config.json says: of one that sees, and of this type."""
        vision = config.get("vision_config")
        is_blind = not isinstance(vision, dict) or (self.encoder and vision.get("model_type") != self.encoder)
        return not is_blind and not (self.sense and config.get("audio_config"))

    def canonical(self, theirs: str, source: Source) -> tuple[tuple[str, str], ...]:
        """Return what a tensor becomes: canonical stems and the names; empty where the table does not know it."""
        match = _THEIRS.fullmatch(theirs)
        assert match is not None
        stem, suffix = (match[1], f".{match[2]}") if match[1] else (match[3], ".weight")
        found = next((ours for ours, name in self.outside.items() if name == stem), None)
        if found is not None:
            return ((found, found + suffix),)
        layer, _, rest = stem.removeprefix(self.block).partition(".")
        if stem.startswith(self.block) and re.fullmatch(r"0|[1-9]\d{0,3}", layer):
            inner = next((ours for ours, name in self.names.items() if name == rest), None)
            return ((inner, f"v.blk.{layer}.{inner}{suffix}"),) if inner else ()
        return self.places(stem, suffix, source)

    def metadata(self, source: Source) -> Iterator[tuple[str, Value]]:
        """Yield the hyperparameters under their keys, in upstream's order."""
        vision = source.vision
        yield "clip.has_vision_encoder", boolean(True)
        yield "clip.vision.projection_dim", u32(source.text.integer("hidden_size"))
        yield "clip.vision.image_size", u32(self.image_size(source))
        yield "clip.vision.patch_size", u32(side(vision, "patch_size"))
        yield "clip.vision.embedding_length", u32(vision.integer("hidden_size"))
        yield "clip.vision.feed_forward_length", u32(vision.integer("intermediate_size"))
        yield "clip.vision.block_count", u32(vision.integer(self.layers, limit=MAX_LAYERS))
        yield "clip.vision.attention.head_count", u32(vision.integer(self.heads))
        yield "clip.vision.image_mean", _colours(source.pictures, "image_mean")
        yield "clip.vision.image_std", _colours(source.pictures, "image_std")
        yield f"clip.{self.sense}projector_type", string(self.kind)
        yield from self.keys(source).items()


def side(config: Config, key: str) -> int:
    """Return a length in pixels, which may stand as a pair of equal ones."""
    value = config.get(key)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return Config(values={key: value[0]}, path=config.path).integer(key)
    return config.integer(key)


def epsilon(config: Config, default: float) -> dict[str, Value]:
    """Return the constant of the norms."""
    return {"clip.vision.attention.layer_norm_epsilon": f32(config.number("layer_norm_eps", default))}


def plus_one(tensor: Tensor, _: Config) -> LazyTensor:
    """Norm weights that transformers stores without the 1 that it adds."""
    return shifted(tensor, 1.0)


def _colours(config: Config, key: str) -> Value:
    values = config.items(key)
    if values is None or len(values) != 3:
        raise FormatError(
            f"{config.path}: {key} is {shown(values)}, not three numbers. Add preprocessor_config.json of the model."
        )
    return array(ValueType.FLOAT32, np.array([finite(value, key, config.path) for value in values], np.float32))


def part(config: Config, key: str, path: Path) -> Config:
    """Return an object in a configuration.

    Raises:
        FormatError: It is none.
    """
    found: Any = config.get(key)
    if not isinstance(found, dict):
        raise FormatError(f"{path}: {key} is {shown(found)}, not an object. Take the model's own config.json.")
    return Config(values=found, path=path)
