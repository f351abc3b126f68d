"""Fuzz plans, JSON that says which type every tensor gets: `python tests/fuzz/fuzz_plan.py -runs=100000`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.dtypes import block_type
from kvant.errors import KvantError
from kvant.quant import plan

SEEDS = (
    b'{"preset":"Q4_K_M","file_type":15,"types":{"token_embd.weight":"Q6_K","blk.0.attn_q.weight":"Q4_K"}}',
    b'{"preset":"custom","file_type":1,"types":{"a":"F16"},"has_importance":true,"pure":true,"predicted_bytes":99,'
    b'"fallbacks":[{"tensor":"a","row_length":100,"wanted":"Q4_K","got":"F16","extra_bytes":-4}]}',
)


def exercise(path: Path) -> None:
    """Read a plan and use it; what is written reads the same."""
    found = plan.read_plan(path)
    assert len(found.sha256) == 64
    assert sum(found.counts().values()) <= len(found.types)
    for name in (*found.types.values(), *(fallback.wanted for fallback in found.fallbacks)):
        try:
            block_type(name)
        except KvantError:
            return
    assert all(str(fallback) for fallback in found.fallbacks)
    path.write_bytes(plan.encode_plan(found))
    assert plan.read_plan(path) == found


if __name__ == "__main__":
    fuzzing.instrument(plan)
    fuzzing.run(exercise, SEEDS, is_json=True)
