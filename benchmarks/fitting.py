"""Encoders under a full Hessian on real matrices: the error they leave, that of importance-weighted search, and speed.

For each matrix and type: e H eᵀ over w H wᵀ, the same error over that of the encoder that knows H's diagonal only
(upstream's), and millions of weights per CPU second at every instruction-set level. H is the second
moment on kvant's calibration text as llama.cpp shows it; it is measured once and kept (minutes).

    python benchmarks/fitting.py [--model models/smollm2-135m] [--tensors blk.10.ffn_down.weight] [--types IQ3_S,Q3_K]
                                 [--rows 64] [--json]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator

import numpy as np

from kvant import kernels
from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.formats.open import open_model
from kvant.kernels import isa
from kvant.kernels.fitting import FITTABLE, fit, prepare
from kvant.quant.curvature import DAMPING
from kvant.recipes.measure.calibration import calibrate
from kvant.recipes.measure.rounding import sample_rows


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per matrix and type."""
    model = open_model(arguments.model)
    statistics = calibrate(model, "bundled").statistics
    chosen = set(arguments.types.split(",")) if arguments.types else FITTABLE
    for name in arguments.tensors.split(","):
        x = sample_rows(model.tensors[name], arguments.rows)
        second_moment = statistics.moments(name)[0]
        curvature = prepare(second_moment, damping=DAMPING)
        h = curvature.hessian.astype(np.float64)
        importance = np.ascontiguousarray(np.diag(second_moment), dtype=np.float32)

        def left(e: np.ndarray, h: np.ndarray = h) -> float:
            return float(np.sum((e @ h) * e))

        for kind in [k for k in BLOCK_TYPES if k in chosen and x.shape[1] % block_type(k).block_length == 0]:
            row: dict[str, object] = {"matrix": name, "type": kind, "bpw": block_type(kind).bpw}
            for level in isa.levels():
                os.environ["KVANT_ISA"] = level
                start = time.process_time()
                blocks, _ = fit(x, kind, curvature, threads=1)
                row[f"{level} Mw/s"] = x.size / (time.process_time() - start) / 1e6
            error = left(kernels.decode(blocks, kind, x.shape[1]).astype(np.float64) - x)
            upstream = kernels.encode(x, kind, importance=importance)
            row["error"] = error / left(x.astype(np.float64))
            row["of weighted"] = error / left(kernels.decode(upstream, kind, x.shape[1]).astype(np.float64) - x)
            yield row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--tensors", default="blk.0.ffn_down.weight,blk.10.ffn_down.weight,blk.29.ffn_down.weight")
    parser.add_argument("--types", default="", help="comma-separated; all by default")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for row in measure(arguments):
        rows.append(row)
        if not arguments.json:
            sys.stdout.write(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()) + "\n"
            )
            sys.stdout.flush()
    if arguments.json:
        sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
