"""Which grouping each layer of an MLX model has: names that mlx-lm's users know, and what config.json says.

Source: mlx_lm.convert of mlx-lm 0.32, its options --q-bits, --q-group-size, --q-mode and --quant-predicate.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from kvant.errors import FormatError, UnsupportedFormatError
from kvant.kernels.mlx import AFFINE_BITS, MICROSCALED, Grouping, check

DEFAULT_GROUP = 64
MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
"""Bits of most layers, and of those that matter more."""

_AFFINE = re.compile(r"(?P<bits>\d)bit(?:-g(?P<group>\d+))?")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """The grouping of every quantized layer.

    Attributes:
        usual: What config.json gives for the whole model.
        layers: Grouping of each quantized layer by its path, e.g. `model.layers.0.mlp.down_proj`.
        is_mixed: config.json names every layer, as mlx-lm does for recipes.
    """

    usual: Grouping
    layers: Mapping[str, Grouping] = field(default_factory=dict)
    is_mixed: bool = False

    def entries(self) -> dict[str, object]:
        """Return the content of config.json's `quantization`."""
        named = self.layers if self.is_mixed else {p: g for p, g in self.layers.items() if g != self.usual}
        return {**_entry(self.usual), **{path: _entry(grouping) for path, grouping in named.items()}}


def type_names() -> list[str]:
    """Return the names of all types and recipes, as `-t` takes them."""
    return [f"{bits}bit" for bits in AFFINE_BITS] + list(MICROSCALED) + list(MIXED)


def named_grouping(name: str) -> Grouping:
    """Return the grouping of a type's name: `4bit`, `4bit-g32`, `mxfp4`.

    Raises:
        UnsupportedFormatError: There is no such type.
    """
    match = _AFFINE.fullmatch(name.lower())
    if name.lower() in MICROSCALED:
        return MICROSCALED[name.lower()]
    if match is None:
        raise UnsupportedFormatError(
            f"type: {name!r} is none of MLX's. Use one of {', '.join(type_names())}; a group of another size than "
            f"{DEFAULT_GROUP} is written 4bit-g32."
        )
    found = Grouping(mode="affine", bits=int(match["bits"]), group_size=int(match["group"] or DEFAULT_GROUP))
    check(found, found.group_size)
    return found


def is_type(name: str) -> bool:
    """Tell whether a name is one of a type or recipe."""
    try:
        return name.lower() in MIXED or bool(named_grouping(name))
    except UnsupportedFormatError:
        return False


def grouping_name(grouping: Grouping) -> str:
    """Return the name that a grouping is asked for by, its group size included."""
    return f"{grouping.bits}bit-g{grouping.group_size}" if grouping.mode == "affine" else grouping.mode


def scheme(name: str, shapes: Mapping[str, Sequence[int]]) -> Scheme:
    """Return the groupings that mlx-lm gives the layers of a model for a type or recipe.

    Args:
        name: Type or recipe.
        shapes: Shape of the matrix of every layer that can be quantized, by the layer's path.

    Raises:
        UnsupportedFormatError: There is no such type, or its groups fit no layer.
    """
    mixed = MIXED.get(name.lower())
    usual = named_grouping("4bit" if mixed else name)
    fitting = [path for path, shape in shapes.items() if shape[-1] % usual.group_size == 0]
    if not fitting:
        raise UnsupportedFormatError(f"type {name}: groups of {usual.group_size} fit no layer. Use 4bit-g32.")
    if mixed is None:
        return Scheme(usual=usual, layers=dict.fromkeys(fitting, usual))
    n_layers = 1 + max((int(m[1]) for path in shapes if (m := _LAYER.search(path))), default=0)
    low, high = (Grouping(mode="affine", bits=bits, group_size=usual.group_size) for bits in mixed)
    layers = {path: high if _matters(path, n_layers) else low for path in fitting}
    return Scheme(usual=usual, layers=layers, is_mixed=True)


def read_scheme(config: Mapping[str, object], paths: Sequence[str], subject: str) -> Scheme | None:
    """Read config.json's `quantization`; None if it has none.

    Args:
        config: The content of config.json.
        paths: Layers that have scales.
        subject: The file, for errors.

    Raises:
        FormatError: It is malformed.
        UnsupportedFormatError: A grouping that MLX does not have.
    """
    found = config.get("quantization")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise FormatError(f"{subject}: quantization is {str(found)[:80]!r}, not an object. Convert the model again.")
    usual = _read_entry(found, found, subject)
    layers = {}
    for path in paths:
        own = found.get(path)
        layers[path] = _read_entry(own, found, f"{subject}, {path}") if isinstance(own, dict) else usual
    return Scheme(usual=usual, layers=layers)


class _Entry(msgspec.Struct):
    group_size: int
    bits: int
    mode: str = "affine"


def _read_entry(entry: Mapping[str, object], usual: Mapping[str, object], subject: str) -> Grouping:
    try:
        read = msgspec.convert({**{k: usual[k] for k in ("mode",) if k in usual}, **entry}, _Entry)
    except msgspec.ValidationError as error:
        raise FormatError(f"{subject}: its quantization cannot be read ({error}). Convert the model again.") from None
    grouping = Grouping(mode=read.mode, bits=read.bits, group_size=read.group_size)
    check(grouping, max(1, grouping.group_size))
    return grouping


def _entry(grouping: Grouping) -> dict[str, object]:
    return {"group_size": grouping.group_size, "bits": grouping.bits, "mode": grouping.mode}


def _matters(path: str, n_layers: int) -> bool:
    """Tell whether a recipe gives a layer more bits: the head, and values and down projections of some layers."""
    match = _LAYER.search(path)
    index = int(match[1]) if match else 0
    eighth = n_layers // 8
    chosen = index < eighth or index >= 7 * n_layers // 8 or (index - eighth) % 3 == 2
    return "lm_head" in path or (chosen and ("v_proj" in path or "down_proj" in path))
