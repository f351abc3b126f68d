"""Rotary scaling, both ways: linear and YaRN as metadata, with every factor that transformers reads.

llama.cpp's YaRN lengthens queries and keys by 1 + log(factor) / 10 and by `rope.scaling.attn_factor`; what a model
states otherwise goes into the latter as a quotient. Limits of the ramp are whole components in the engine, so a model
whose limits are not is refused.

Source: transformers 5.24 `modeling_rope_utils._compute_yarn_parameters`; llama.cpp `llama_context` (attention factor),
ggml `rope_yarn`, `ggml_rope_yarn_corr_dims`. Both sides agree in tests/parity/test_rope.py.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.bounds import outside
from kvant.formats.huggingface.architectures.hyper import has, integer, number
from kvant.formats.huggingface.config import MAX_INTEGER, ORIGINAL_LENGTH, ROPE_ENTRIES, Config, shown
from kvant.metadata import Value, ValueType, array, f32, string, u32
from kvant.model import Model

Lengthening = Callable[[Config, float], float]
"""By how much an engine's YaRN lengthens queries and keys, from the configuration and YaRN's factor."""

YARN: tuple[tuple[str, str], ...] = (
    ("yarn_attn_factor", "attention_factor"),
    ("yarn_beta_fast", "beta_fast"),
    ("yarn_beta_slow", "beta_slow"),
)
"""Optional parameters of YaRN: GGUF key, transformers' key. The engine passes over the first; upstream writes it."""


def config_theta(config: Config) -> float:
    """Return the base of the rotary frequencies.

    Raises:
        FormatError: It is out of bounds.
    """
    theta = Config(values=config.rope, path=config.path).number("rope_theta", 10000.0)
    wrong = outside("rope.freq_base", theta)
    if wrong:
        raise FormatError(f"{config.path}: rope_theta is {wrong}. Correct it.")
    return theta


def check_rope(config: Config, architecture: str, kinds: frozenset[str], *, is_rounded: bool = False) -> None:
    """Refuse rotary parameters that the engine would compute otherwise.

    Args:
        config: The configuration.
        architecture: llama.cpp's name.
        kinds: The rotary scalings that it computes.
        is_rounded: Whether a ramp whose limits the engine rounds is taken, see `rope_remarks`.

    Raises:
        UnsupportedModelError: A kind of scaling, or a setting of YaRN, that it does not have.
    """
    rope = config.rope
    if not kinds:
        return
    if rope["rope_type"] not in kinds:
        raise UnsupportedModelError(
            f"{config.path}: rope type {shown(rope['rope_type'])} is none that llama.cpp's {architecture} computes "
            f"({', '.join(sorted(kinds))}). Such a model cannot be stored as GGUF."
        )
    if rope["rope_type"] == "yarn" and rope.get("truncate") is False and not is_rounded:
        raise UnsupportedModelError(
            f"{config.path}: truncate is false for YaRN, but llama.cpp rounds the limits of its ramp to whole "
            f"components. Such a model cannot be stored as GGUF."
        )


def check_whole_rotation(config: Config) -> None:
    """Refuse that a share of each head is left unrotated, where transformers and llama.cpp rotate all of it.

    Raises:
        UnsupportedModelError: There is such a share.
    """
    share = config.rope.get("partial_rotary_factor", 1.0)
    if share != 1:
        raise UnsupportedModelError(
            f"{config.path}: partial_rotary_factor is {shown(share)}, but models of this class rotate whole heads. "
            f"Such a model cannot be stored as GGUF; remove the entry if it was trained without."
        )


def rope_sections(config: Config, default: Sequence[int] = ()) -> Value:
    """Return how rotary pairs are shared between time, height, width and a fourth axis, int32 [4].

    Raises:
        FormatError: `mrope_section` is no list of up to four counts, or of more than a head has: the engine aborts.
    """
    found = config.rope.get("mrope_section") or default
    counts = [n for n in found if isinstance(n, int) and 0 <= n <= MAX_INTEGER] if isinstance(found, Sequence) else []
    if not 1 <= len(counts) <= 4 or len(counts) != len(found):
        raise FormatError(f"{config.path}: mrope_section is {shown(found)}, not up to four counts. Correct it.")
    if not 1 <= sum(counts) <= config.head_dim:
        raise FormatError(
            f"{config.path}: mrope_section {shown(found)} shares out {sum(counts)} pairs, not 1 to the "
            f"{config.head_dim} of a head, which is what llama.cpp takes. Correct it."
        )
    return array(ValueType.INT32, np.asarray([*counts, 0, 0, 0, 0][:4], np.int32))


def rope_remarks(config: Config, read: Collection[str] = ()) -> Iterator[str]:
    """Say which rotary parameters nobody reads; `read` are those of the family beyond `ROPE_ENTRIES`."""
    known = ROPE_ENTRIES | set(read)
    scaling, parameters = config.get("rope_scaling"), config.get("rope_parameters")
    if scaling and parameters and not config.is_rope_by_layer and scaling != parameters:
        yield (
            f"{config.path}: holds rope_scaling and rope_parameters; like transformers, kvant takes rope_scaling, and "
            f"{shown(parameters)} is left out."
        )
    for name, place in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        place = place if isinstance(place, dict) else {}
        by_layer = {kind: inner for kind, inner in place.items() if isinstance(inner, dict)}
        unread = {key for key in place if key not in by_layer} - known
        if config.is_rope_by_layer and name == "rope_parameters":
            unread = set(place) - {"full_attention", "sliding_attention"}
        unread |= {key for inner in by_layer.values() for key in set(inner) - known}
        if unread:
            yield f"{config.path}: {name} holds {', '.join(sorted(unread))}, which nobody reads."
    if config.rope["rope_type"] == "yarn" and config.rope.get("truncate") is False:
        yield (
            f"{config.path}: truncate is false for YaRN, but llama.cpp rounds the limits of its ramp to whole "
            f"components, so its rotary frequencies differ from transformers' in every GGUF of this model."
        )
    if config.rope["rope_type"] == "longrope":
        yield (
            "The engine takes its long or short rotary factors by the size of its context, transformers by the length "
            f"of the text: with a context of up to {config.rope.get(ORIGINAL_LENGTH)} tokens both take the short ones."
        )


def rope_scaling(config: Config, architecture: str, lengthening: Lengthening | None = None) -> dict[str, Value]:
    """Return the metadata of linear and YaRN scaling; nothing for the other kinds, which are tensors.

    Args:
        config: The configuration.
        architecture: llama.cpp's name.
        lengthening: By how much the engine's YaRN lengthens; by default `yarn_lengthening`.
    """
    rope = Config(values=config.rope, path=config.path)
    kind, prefix = rope.get("rope_type"), f"{architecture}.rope.scaling."
    if kind == "linear":
        return {prefix + "type": string(kind), prefix + "factor": f32(_factor(rope, rope.number("factor")))}
    if kind != "yarn":
        return {}
    context = config.integer("max_position_embeddings")
    length = rope.integer(ORIGINAL_LENGTH, context)
    factor = _factor(rope, rope.number("factor", context / length))
    found = {
        prefix + "type": string(kind), prefix + "factor": f32(factor), prefix + "original_context_length": u32(length)
    }  # fmt: skip
    found |= {prefix + ours: f32(rope.number(theirs)) for ours, theirs in YARN if rope.get(theirs) is not None}
    engine = lengthening(config, factor) if lengthening else yarn_lengthening(factor)
    wanted = attention_factor(rope, factor) / engine
    if not wanted > 0:
        raise FormatError(f"{config.path}: YaRN's attention factor is {wanted:g}, not above 0. Correct it.")
    if wanted != 1:
        found[prefix + "attn_factor"] = f32(wanted)
    return found


def _factor(rope: Config, factor: float) -> float:
    """Return a factor of scaling; positions are divided by it.

    Raises:
        FormatError: It is not above 0.
    """
    if not factor > 0:
        raise FormatError(f"{rope.path}: factor is {factor:g}, not above 0. Correct it.")
    return factor


def attention_factor(rope: Config, factor: float) -> float:
    """Return by how much YaRN lengthens queries and keys, as transformers takes it from what a model states."""
    if rope.get("attention_factor") is not None:
        return rope.number("attention_factor")
    mscale, all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if mscale and all_dim:
        return yarn_lengthening(factor, mscale) / (yarn_lengthening(factor, all_dim) or math.inf)
    return yarn_lengthening(factor)


def yarn_of_all(config: Config) -> float:
    """Return YaRN's `mscale_all_dim`, by which some models lengthen the whole head; 0 of those that do not."""
    rope = Config(values=config.rope, path=config.path)
    return rope.number("mscale_all_dim", 0.0) if rope.get("rope_type") == "yarn" else 0.0


def yarn_lengthening(factor: float, mscale: float = 1.0) -> float:
    """Return 1 + mscale * log(factor) / 10; 1 for a factor of 1 or less."""
    return 1.0 if factor <= 1 else 1 + 0.1 * mscale * math.log(factor)


def rope_entries(model: Model, context: int) -> dict[str, Any]:
    """Return the entry `rope_scaling` of config.json; nothing where there is no linear or YaRN scaling."""
    kind = model.get(f"{model.architecture}.rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return {}
    factor = number(model, "rope.scaling.factor", 1.0)
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling[ORIGINAL_LENGTH] = integer(model, "rope.scaling.original_context_length", context)
        known = [(ours, theirs) for ours, theirs in YARN if has(model, f"rope.scaling.{ours}")]
        scaling |= {theirs: number(model, f"rope.scaling.{ours}", 0.0) for ours, theirs in known}
        lengthening = number(model, "rope.scaling.attn_factor", 1.0)
        scaling.pop("attention_factor", None)  # the engine passes over it
        if lengthening != 1:
            scaling["attention_factor"] = lengthening * yarn_lengthening(factor)
    return {"rope_scaling": scaling}
