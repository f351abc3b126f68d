"""The mixes behind presets: which tensors of `Q4_K_M`, `IQ3_XXS`, ... get another type than the preset's own.

One table per role: preset -> clauses, of which the first that holds decides; none holding leaves the preset's own type.
A clause looks at where the tensor stands (`i` of `n`), at the model's shape and at whether importance is at hand.

Source: llama.cpp b11434 `src/llama-quant.cpp` `llama_tensor_get_type_impl`, read as facts; parity with programs built
from it is in tests/parity/test_presets.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvant.quant.roles import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules know of a model.

    Attributes:
        architecture: llama.cpp's name.
        n_layers: Layers.
        n_attention_v: Attention value tensors, fused ones included.
        gqa: Query heads that share one key head (grouped-query attention), in the first layer.
        n_experts: Experts; 0 for a dense model.
        is_70b: Whether llama.cpp calls it a 70B model: 80 layers of a few architectures.
        is_tied: Whether the embedding is the output head too.
        has_importance: Whether importance is at hand.
    """

    architecture: str
    n_layers: int
    n_attention_v: int
    gqa: int
    n_experts: int
    is_70b: bool
    is_tied: bool
    has_importance: bool


Condition = Callable[[int, int, Facts], bool]
Clauses = tuple[tuple[Condition, str], ...]
Mix = Mapping[str, Clauses]


def _always(_i: int, _n: int, _facts: Facts) -> bool:
    return True


def _gqa_4(_i: int, _n: int, facts: Facts) -> bool:
    return facts.gqa >= 4


def _gqa_4_or_experts(_i: int, _n: int, facts: Facts) -> bool:
    return facts.gqa >= 4 or facts.n_experts >= 4


def _eight_experts(_i: int, _n: int, facts: Facts) -> bool:
    return facts.n_experts == 8


def _no_importance(_i: int, _n: int, facts: Facts) -> bool:
    return not facts.has_importance


def _first_eighth(i: int, n: int, _facts: Facts) -> bool:
    return i < n // 8


def _first_sixteenth(i: int, n: int, _facts: Facts) -> bool:
    return i < n // 16


def _middle(i: int, n: int, _facts: Facts) -> bool:
    return n // 8 <= i < 7 * n // 8


def _more_bits(i: int, n: int, _facts: Facts) -> bool:
    """First and last eighth of the layers, and every third one between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _below(limit: int) -> Condition:
    return lambda i, _n, _facts: i < limit


def _both(a: Condition, b: Condition) -> Condition:
    return lambda i, n, facts: a(i, n, facts) and b(i, n, facts)


def _with_importance(i: int, n: int, facts: Facts) -> bool:
    return not _no_importance(i, n, facts)


def _to(name: str) -> Clauses:
    return ((_always, name),)


# Presets that start below 3 bits share their own mix, and none of the adjustments that the others have.
ULTRA_LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_IQ2_SM = ("IQ2_S", "IQ2_M")


def _spared(preset: str) -> str:
    """Type of the tensors that an ultra-low preset spares."""
    return "IQ3_S" if preset in _IQ2_SM else "Q2_K"


ATTENTION_V: Mix = {
    "Q2_K": ((_gqa_4, "Q4_K"), (_always, "Q3_K")),
    "Q2_K_S": ((_gqa_4, "Q4_K"),),
    "IQ3_XXS": ((_gqa_4, "Q4_K"), (_no_importance, "IQ3_S")),
    "IQ3_XS": ((_gqa_4, "Q4_K"),),
    "IQ3_S": ((_gqa_4, "Q4_K"),),
    "IQ3_M": _to("Q4_K"),
    "Q3_K_M": ((_below(2), "Q5_K"), (_always, "Q4_K")),
    "Q3_K_L": _to("Q5_K"),
    "IQ4_NL": ((_gqa_4, "Q5_K"),),
    "IQ4_XS": ((_gqa_4, "Q5_K"),),
    "Q4_K_M": ((_more_bits, "Q6_K"),),
    "Q5_K_M": ((_more_bits, "Q6_K"),),
    "Q4_K_S": ((_below(4), "Q5_K"),),
    **{preset: ((_gqa_4_or_experts, "Q4_K"), (_always, _spared(preset))) for preset in ULTRA_LOW},
}

ATTENTION_K: Mix = {
    "IQ3_XS": _to("IQ3_XXS"),
    "IQ3_XXS": _to("IQ2_S"),
    **dict.fromkeys(ULTRA_LOW, ((_eight_experts, "Q4_K"),)),
}

ATTENTION_Q: Mix = {"IQ3_XS": _to("IQ3_XXS"), "IQ3_XXS": _to("IQ2_S")}

ATTENTION_OUTPUT: Mix = {
    "Q2_K": _to("Q3_K"),
    "IQ3_XXS": _to("IQ3_S"),
    "Q3_K_M": _to("Q4_K"),
    "Q3_K_L": _to("Q5_K"),
    "IQ3_M": _to("Q4_K"),
    "IQ1_S": _to("IQ2_XXS"),
    "IQ1_M": _to("IQ2_XXS"),
    "IQ2_S": _to("IQ3_S"),
    "IQ2_M": _to("IQ3_S"),
}

# fmt: off
_SPARED_WITH_EIGHT_EXPERTS = (
    "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS",
    *ULTRA_LOW,
)
# fmt: on
ATTENTION_OUTPUT_EIGHT_EXPERTS: Mix = dict.fromkeys(_SPARED_WITH_EIGHT_EXPERTS, _to("Q5_K"))

FFN_DOWN: Mix = {
    "Q2_K": _to("Q3_K"),
    "Q2_K_S": ((_first_eighth, "Q4_K"),),
    "IQ3_XXS": ((_both(_no_importance, _first_eighth), "Q4_K"), (_no_importance, "Q3_K")),
    "Q3_K_M": ((_first_sixteenth, "Q5_K"), (_always, "Q4_K")),
    "IQ3_M": ((_first_eighth, "Q4_K"), (_both(_eight_experts, _more_bits), "Q4_K")),
    "Q3_K_L": _to("Q5_K"),
    "Q4_K_M": ((_more_bits, "Q6_K"),),
    "Q5_K_M": ((_more_bits, "Q6_K"),),
    "Q4_K_S": ((_first_eighth, "Q5_K"),),
    "IQ4_NL": ((_both(_no_importance, _first_eighth), "Q5_K"),),
    "IQ4_XS": ((_both(_no_importance, _first_eighth), "Q5_K"),),
    "Q4_0": ((_both(_with_importance, _first_eighth), "Q4_1"),),
    "Q5_0": ((_both(_with_importance, _first_eighth), "Q5_1"),),
    **{preset: ((_first_eighth, _spared(preset)),) for preset in ULTRA_LOW},
}

FFN_IN: Mix = {"IQ3_XS": ((_middle, "IQ3_XXS"),)}

FALCON_FFN_DOWN: Mix = {
    **FFN_DOWN,
    "Q3_K_M": ((_first_sixteenth, "Q5_K"), (_more_bits, "Q4_K")),
    "Q3_K_L": _to("Q4_K"),
    "Q4_K_M": ((_first_sixteenth, "Q6_K"), (_more_bits, "Q5_K")),
    "Q4_K_S": (),
}
FALCON_ATTENTION_OUTPUT: Mix = {"Q3_K_L": _to("Q4_K")} | {
    p: ATTENTION_OUTPUT[p] for p in ULTRA_LOW if p in ATTENTION_OUTPUT
}

# Embeddings that are not the output head too.
EMBEDDING: Mix = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), _to("Q2_K")),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), _to("IQ3_S")),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), _to("Q4_K")),
}

# Output heads (tied embeddings too): Q6_K, but for these.
HEAD_Q5_K = (*ULTRA_LOW, "IQ3_XXS")

_GLM5_AT_LEAST_Q8 = ("attn_q_a", "attn_q_b", "nextn.eh_proj")


def mix_of(role: Role, preset: str, facts: Facts) -> Clauses:
    """Return the clauses for tensors of a role."""
    falcon = facts.architecture == "falcon"
    match role:
        case Role.ATTENTION_V:
            table = ATTENTION_V
        case Role.ATTENTION_K:
            table = ATTENTION_K
        case Role.ATTENTION_Q:
            table = ATTENTION_Q
        case Role.ATTENTION_OUTPUT if facts.n_experts == 8 and not (falcon and preset not in ULTRA_LOW):
            table = ATTENTION_OUTPUT_EIGHT_EXPERTS
        case Role.ATTENTION_OUTPUT:
            table = FALCON_ATTENTION_OUTPUT if falcon else ATTENTION_OUTPUT
        case Role.FFN_DOWN:
            table = FALCON_FFN_DOWN if falcon else FFN_DOWN
        case Role.FFN_UP | Role.FFN_GATE:
            table = FFN_IN
        case Role.EMBEDDING:
            table = EMBEDDING
        case _:
            return ()
    return table.get(preset, ())


def mixed_type(role: Role, preset: str, base: str, i: int, n: int, facts: Facts) -> str:
    """Return the type of a tensor that is not an output head.

    Args:
        role: What it does.
        preset: Preset asked for.
        base: The preset's own type.
        i: Where it stands among those of its role: its number, or its layer.
        n: How many there are, or layers.
        facts: The model's shape.

    Returns:
        Name of a block type, before any fallback for its row length.
    """
    chosen = next((name for holds, name in mix_of(role, preset, facts) if holds(i, n, facts)), base)
    if preset in ULTRA_LOW:
        return chosen
    if role is Role.ATTENTION_V and facts.is_70b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    if role in (Role.ATTENTION_V, Role.ATTENTION_K) and facts.n_experts == 8:
        chosen = "Q8_0"
    return chosen


def head_type(preset: str, base: str, facts: Facts, *, base_fits: bool) -> str:
    """Return the type of an output head, before any fallback; `base_fits`: its rows divide into the base type's blocks.

    A head whose rows do not fit goes straight to Q8_0, which is why small models stay large.
    """
    if preset == "MXFP4_MOE" or facts.architecture == "falcon" or not base_fits:
        return "Q8_0"
    if preset in HEAD_Q5_K:
        return "Q5_K"
    return base if base == "Q8_0" else "Q6_K"


def least_type(name: str, base: str, facts: Facts) -> str | None:
    """Return the type of tensors that an architecture never stores in fewer than 8 bits; None for all others."""
    protected = facts.architecture == "glm5-next" and any(part in name for part in _GLM5_AT_LEAST_Q8)
    return "Q8_0" if protected and base not in ("F32", "F16", "BF16") else None


def expert_type(role: Role, n_matrices: int, facts: Facts) -> str:
    """Return the type of a tensor under MXFP4_MOE: MXFP4 for stacks of experts, Q8_0 for the rest."""
    is_expert = role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN)
    return "MXFP4" if n_matrices > 1 and (facts.architecture != "bailingmoe3" or is_expert) else "Q8_0"
