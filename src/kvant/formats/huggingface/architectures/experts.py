"""Experts of a mixture: how checkpoints name them, one by one or stacked, and what becomes of them.

llama.cpp stacks the matrices of all experts of a layer in one tensor of three axes, [experts, rows, columns].

Source: llama.cpp 0.3.36's `conversion/` (`modify_tensors` of the families), transformers 5.24 `conversion_mapping.py`.
"""

from kvant.formats.huggingface.architectures.names import Rule
from kvant.formats.huggingface.architectures.transforms import FIRST_HALF, SECOND_HALF

MLP_EXPERTS = (
    Rule("ffn_gate_exps.weight", "mlp.experts.{}.gate_proj.weight"),
    Rule("ffn_up_exps.weight", "mlp.experts.{}.up_proj.weight"),
    Rule("ffn_down_exps.weight", "mlp.experts.{}.down_proj.weight"),
    Rule("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", FIRST_HALF),
    Rule("ffn_up_exps.weight", "mlp.experts.gate_up_proj", SECOND_HALF),
    Rule("ffn_down_exps.weight", "mlp.experts.down_proj"),
)
"""As most families name them: one by one, or stacked with gate and up projection in one."""

EXPERT_STEMS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
"""Stems of a layer of experts: the router, and the three projections of all of them."""

EXPERT_SHAPES = {
    "ffn_gate_inp": ("{experts}", "hidden_size"),
    "ffn_gate_exps": ("{experts}", "moe_intermediate_size", "hidden_size"),
    "ffn_up_exps": ("{experts}", "moe_intermediate_size", "hidden_size"),
    "ffn_down_exps": ("{experts}", "hidden_size", "moe_intermediate_size"),
}
"""Shapes of these, see `Family.shapes`."""

SHARED_EXPERT = {
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
"""The expert that every token passes through, and its gate."""
