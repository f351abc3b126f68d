"""Hyperparameters both ways: entries of config.json and keys of GGUF's metadata, as tables.

Source: llama.cpp 0.3.36 `conversion/base.py` `TextModel.set_gguf_parameters`, gguf-py `constants.py`.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from kvant.errors import FormatError
from kvant.formats.bounds import outside
from kvant.formats.huggingface.architectures.hyper import has, integer, number
from kvant.formats.huggingface.architectures.rope import Lengthening, config_theta, rope_entries, rope_scaling
from kvant.formats.huggingface.config import MAX_INTEGER, MAX_LAYERS, Config, shown
from kvant.metadata import Value, ValueType, array, boolean, f32, u32
from kvant.model import Model


class Kind(Enum):
    """What a hyperparameter is."""

    COUNT = "positive integer"
    INTEGER = "integer of 0 or more"
    NUMBER = "number"
    FLAG = "boolean"
    INTEGERS = "list of integers"


@dataclass(frozen=True, slots=True)
class Key:
    """A hyperparameter that both sides store as it is.

    Attributes:
        ours: GGUF key without its architecture.
        theirs: Entry of config.json; of several, parted by `|`, the first that is there. Without one, nothing is
            written, unless the family's defaults have it.
        kind: What it is.
    """

    ours: str
    theirs: str
    kind: Kind = Kind.COUNT

    def entry(self, config: Config) -> str | None:
        """Return the entry that is there."""
        return next((name for name in self.theirs.split("|") if config.get(name) is not None), None)

    def value(self, config: Config) -> Value | None:
        """Return the metadata value; None if config.json has no such entry.

        Raises:
            FormatError: The entry is of another kind, or out of bounds.
        """
        name = self.entry(config)
        if name is None:
            return None
        value = _VALUES[self.kind](config, name)
        wrong = outside(self.ours, value.value)
        if wrong:
            raise FormatError(f"{config.path}: {name} is {wrong}. Correct it.")
        return value

    def back(self, model: Model, names: Collection[str] = ()) -> dict[str, Any]:
        """Return the entry of config.json, under the first of its names that is in `names`; nothing if it lacks."""
        if not has(model, self.ours):
            return {}
        known = self.theirs.split("|")
        name = next((one for one in known if one in names), known[0])
        if self.kind is Kind.NUMBER:
            return {name: number(model, self.ours, 0.0)}
        found = model.get(f"{model.architecture}.{self.ours}")
        if self.kind is Kind.FLAG:
            return {name: bool(found)}
        if self.kind is Kind.INTEGERS:
            return {name: np.ravel(np.asarray(found)).tolist()}
        return {name: integer(model, self.ours, least=int(self.kind is Kind.COUNT))}


def _whole(config: Config, name: str) -> Value:
    return u32(config.integer(name, least=0))


def _flag(config: Config, name: str) -> Value:
    if not isinstance(config.get(name), bool):
        raise FormatError(f"{config.path}: {name} is {shown(config.get(name))}, not true or false. Correct it.")
    return boolean(config.flag(name))


def _integers(config: Config, name: str) -> Value:
    values = config.items(name) or []
    if not all(isinstance(v, int) and not isinstance(v, bool) and abs(v) <= MAX_INTEGER for v in values):
        raise FormatError(f"{config.path}: {name} is {shown(values)}, not a list of integers. Correct it.")
    return integers(values)


_VALUES = {
    Kind.COUNT: lambda config, name: u32(config.integer(name)),
    Kind.INTEGER: _whole,
    Kind.NUMBER: lambda config, name: f32(config.number(name)),
    Kind.FLAG: _flag,
    Kind.INTEGERS: _integers,
}


def integers(values: Iterable[int]) -> Value:
    """Return a list of integers as upstream stores them: int32."""
    return array(ValueType.INT32, np.asarray(list(values), np.int32))


def booleans(values: Iterable[bool]) -> Value:
    """Return a list of booleans."""
    return array(ValueType.BOOL, np.asarray(list(values), np.bool_))


INTEGERS: tuple[Key, ...] = (
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.head_count_kv", "num_key_value_heads"),
)
"""Hyperparameters of every model with attention, after `block_count`, in upstream's order."""

EXPERTS: tuple[Key, ...] = (
    Key("expert_count", "num_local_experts|num_experts|n_routed_experts"),
    Key("expert_used_count", "num_experts_per_tok|num_experts_per_token|top_k_experts"),
    Key("expert_group_count", "n_group", Kind.INTEGER),
    Key("expert_group_used_count", "topk_group", Kind.INTEGER),
)
"""Hyperparameters of a mixture of experts that upstream writes for every class that has them."""

RMS_EPSILON = Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", Kind.NUMBER)
NORM_EPSILON = Key("attention.layer_norm_epsilon", "layer_norm_eps|layer_norm_epsilon|norm_epsilon", Kind.NUMBER)


def hyperparameters(
    config: Config,
    architecture: str,
    *,
    n_blocks: int | None = None,
    counts: tuple[Key, ...] = INTEGERS,
    epsilons: tuple[Key, ...] = (RMS_EPSILON,),
    experts: tuple[Key, ...] = (),
    has_rope: bool = True,
    lengthening: Lengthening | None = None,
) -> dict[str, Value]:
    """Return the metadata that every family has, in upstream's order.

    Args:
        config: The configuration.
        architecture: llama.cpp's name.
        n_blocks: Number of blocks, where it is not that of the layers.
        counts: Sizes, each of which must be there.
        epsilons: Of the norms, each of which must be there.
        experts: Of a mixture of experts, as they are there.
        has_rope: Whether positions are rotations.
        lengthening: By how much the engine's YaRN lengthens, see `rope_scaling`.
    """
    found: dict[str, Value] = {f"{architecture}.block_count": u32(n_blocks or config.n_layers)}
    found |= _written(counts, config, architecture)
    if has_rope:
        found |= rope_scaling(config, architecture, lengthening)
        found[f"{architecture}.rope.freq_base"] = f32(config_theta(config))
        if config.local_rope_theta is not None:
            found[f"{architecture}.rope.freq_base_swa"] = f32(config.local_rope_theta)
    found |= _written(epsilons, config, architecture)
    found |= _experts(experts, config, architecture)
    if config.get("head_dim") is not None:
        found[f"{architecture}.attention.key_length"] = u32(config.head_dim)
        found[f"{architecture}.attention.value_length"] = u32(config.head_dim)
    return found | file_type()


def _experts(keys: tuple[Key, ...], config: Config, architecture: str) -> dict[str, Value]:
    """Return the metadata of experts.

    Raises:
        FormatError: A token is given more experts than there are.
    """
    found = written(keys, config, architecture)
    count, used = (found.get(f"{architecture}.expert_{name}") for name in ("count", "used_count"))
    if count is not None and used is not None and int(used.value) > int(count.value):  # type: ignore[arg-type]
        raise FormatError(f"{config.path}: a token is given {used.value} of {count.value} experts. Correct it.")
    return found


def written(keys: Iterable[Key], config: Config, architecture: str) -> dict[str, Value]:
    """Return the metadata of those of some keys that config.json has."""
    found = {f"{architecture}.{key.ours}": key.value(config) for key in keys}
    return {name: value for name, value in found.items() if value is not None}


def _written(keys: tuple[Key, ...], config: Config, architecture: str) -> dict[str, Value]:
    for key in keys:
        if key.entry(config) is None:
            raise FormatError(
                f"{config.path}: has no {key.theirs.partition('|')[0]}. Add the value that the model was trained with."
            )
    return written(keys, config, architecture)


def file_type() -> dict[str, Value]:
    """Return the place of the file type in upstream's order; who writes a file sets its value."""
    return {"general.file_type": u32(0)}


def config_entries(
    model: Model, keys: Iterable[Key] = (), *, epsilons: tuple[Key, ...] = (RMS_EPSILON,), has_rope: bool = True,
    names: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the entries of config.json that every family has and those of `keys`, from a model's metadata.

    Args:
        model: The model.
        keys: Further hyperparameters.
        epsilons: Of the norms.
        has_rope: Whether positions are rotations.
        names: Entries that the class knows, where one has several names, or is not every family's.

    Raises:
        FormatError: A hyperparameter is missing or of the wrong type.
    """
    heads = integer(model, "attention.head_count")
    entries: dict[str, Any] = {"num_hidden_layers": integer(model, "block_count")}
    entries |= {
        key.theirs: integer(model, key.ours, heads if key.ours == "attention.head_count_kv" else None)
        for key in INTEGERS
    }
    if RMS_EPSILON in epsilons:
        entries["rms_norm_eps"] = number(model, "attention.layer_norm_rms_epsilon", 1e-6)
    if has_rope:
        entries["rope_theta"] = number(model, "rope.freq_base", 10000.0)
    if entries["num_hidden_layers"] > MAX_LAYERS:
        raise FormatError(
            f"{model.path}: block_count {entries['num_hidden_layers']} is above {MAX_LAYERS}. Convert from the "
            f"original model again."
        )
    if has(model, "attention.key_length"):
        entries["head_dim"] = integer(model, "attention.key_length")
    for key in (*keys, *(key for key in epsilons if key != RMS_EPSILON)):
        entries |= key.back(model, names)
    if "partial_rotary_factor" in names and has(model, "rope.dimension_count"):
        head = entries.get("head_dim", entries["hidden_size"] // heads)
        entries["partial_rotary_factor"] = integer(model, "rope.dimension_count") / head
    return entries | rope_entries(model, entries["max_position_embeddings"])
