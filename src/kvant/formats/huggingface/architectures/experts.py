"""Experts of a mixture: how checkpoints name them, one by one or stacked, and what becomes of them.

llama.cpp stacks the matrices of all experts of a layer in one tensor of three axes, [experts, rows, columns].

Source: llama.cpp 0.3.36's `conversion/` (`modify_tensors` of the families), transformers 5.24 `conversion_mapping.py`.
"""

from kvant.formats.huggingface.architectures.names import Rule
from kvant.formats.huggingface.architectures.transforms import FIRST_HALF, SECOND_HALF
from kvant.formats.huggingface.config import Config

GATED = ("gate_proj", "up_proj", "down_proj")
NUMBERED = ("w1", "w3", "w2")
"""Names of an expert's gate, up and down projection; the second are Mixtral's."""


def expert_rules(place: str, names: tuple[str, str, str] = GATED) -> tuple[Rule, ...]:
    """Return the rules of experts at a place in a block: one by one, or stacked with gate and up projection in one."""
    return (
        *(
            Rule(f"ffn_{ours}_exps.weight", f"{place}.{{}}.{theirs}.weight")
            for ours, theirs in zip(("gate", "up", "down"), names, strict=True)
        ),
        Rule("ffn_gate_exps.weight", f"{place}.gate_up_proj", FIRST_HALF),
        Rule("ffn_up_exps.weight", f"{place}.gate_up_proj", SECOND_HALF),
        Rule("ffn_down_exps.weight", f"{place}.down_proj"),
    )


MLP_EXPERTS = expert_rules("mlp.experts")
"""As most families name them: one by one, or stacked with gate and up projection in one."""

EXPERT_STEMS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
"""Stems of a layer of experts: the router, and the three projections of all of them."""


def expert_shapes(length: str) -> dict[str, tuple[str, ...]]:
    """Return the shapes of these, see `Family.shapes`; `length` is the entry of an expert's inner length."""
    return {
        "ffn_gate_inp": ("{experts}", "hidden_size"),
        "ffn_gate_exps": ("{experts}", length, "hidden_size"),
        "ffn_up_exps": ("{experts}", length, "hidden_size"),
        "ffn_down_exps": ("{experts}", "hidden_size", length),
    }


EXPERT_SHAPES = expert_shapes("moe_intermediate_size")

SHARED_EXPERT = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
"""The expert that every token passes through, and its gate."""

SHARED_EXPERTS = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
"""Several of these in one MLP, without a gate."""

SHARED_EXPERTS_SHAPES = {
    "ffn_gate_shexp": ("n_shared_experts*moe_intermediate_size", "hidden_size"),
    "ffn_up_shexp": ("n_shared_experts*moe_intermediate_size", "hidden_size"),
    "ffn_down_shexp": ("hidden_size", "n_shared_experts*moe_intermediate_size"),
}

EXPERT_BIAS = "exp_probs_b.bias"
"""What is added to the scores while experts are chosen, and not when they are weighed."""

SCORE_CORRECTION = Rule(EXPERT_BIAS, "mlp.gate.e_score_correction_bias")

SOFTMAX, SIGMOID = 1, 2
"""`expert_gating_func`. Source: gguf-py `ExpertGatingFuncType`."""


def is_dense(config: Config, layer: int) -> bool:
    """Whether a layer is one of the leading ones without experts."""
    return layer < config.integer("first_k_dense_replace", 0, least=0)
