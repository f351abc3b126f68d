from kvant.dtypes import BLOCK_TYPES, NEW_TYPES
from kvant.quant.plan import Plan
from kvant.recipes.targets.gguf.write import new_types_in_words


def plan(*kinds: str) -> Plan:
    types = {f"blk.{i}.ffn_up.weight": kind for i, kind in enumerate(kinds)}
    return Plan(preset="custom", file_type=0, types=types, has_importance=False)


def test_types_that_older_engines_refuse_are_said() -> None:
    assert BLOCK_TYPES.keys() >= NEW_TYPES
    assert new_types_in_words(plan("Q4_0", "Q2_K", "MXFP4")) == ""
    assert new_types_in_words(plan("Q2_0", "Q4_0", "NVFP4", "Q2_0")) == (
        "1 tensor in NVFP4 and 2 tensors in Q2_0: llama.cpp of 2025, and engines built on it, refuse the file. "
        "Use those of the middle of 2026 on."
    )
