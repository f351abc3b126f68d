"""Made-up allocations: tensors like those of a small model, with costs that fall as bits rise."""

import numpy as np

from kvant.allocate.options import Option


def many(n: int, unit: int = 6912, seed: int = 0) -> dict[str, list[Option]]:
    """Tensors like those of a small model."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(n):
        rows, weight = int(rng.integers(1, 9)), float(rng.lognormal(0, 1))
        found[f"blk.{i}.ffn_up.weight"] = [
            Option(
                kind=kind,
                n_bytes=rows * units * unit,
                cost=0.01 * weight * rows * 2.0**-units,
                seconds=rows * seconds * 1e-6,
            )
            for kind, units, seconds in (("Q4_0", 9, 9), ("Q4_1", 10, 8), ("Q5_1", 12, 13), ("Q8_0", 17, 17))
        ]
    return found


def decoder(layers: int) -> dict[str, list[Option]]:
    """A decoder with a tied embedding, a third of its weights; random sensitivities."""
    rng = np.random.default_rng(3)
    rows = {"attn_q": 3, "attn_k": 1, "attn_output": 3, "ffn_up": 8, "ffn_down": 8}
    names = {f"blk.{i}.{part}.weight": n for i in range(layers) for part, n in rows.items()}
    names["token_embd.weight"] = 12 * layers
    return {
        name: [
            Option(
                kind=kind,
                n_bytes=rows * units * 6912,
                cost=0.02 * sensitivity * rows * error,
                seconds=rows * seconds * 1e-6,
            )
            for kind, units, error, seconds in (
                ("Q4_0", 9, 2e-3, 9), ("Q4_1", 10, 9e-4, 8), ("Q5_1", 12, 2.4e-4, 13), ("Q8_0", 17, 4e-6, 17)
            )
        ]
        for (name, rows), sensitivity in zip(names.items(), rng.lognormal(0, 0.7, len(names)), strict=True)
    }  # fmt: skip
