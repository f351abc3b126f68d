"""What each method brings, alone and together, at the sizes of some presets: mean KL divergence in llama.cpp.

    python benchmarks/ablation.py MODEL [--presets Q4_K_M,Q2_K] [--windows 64] [--chunks 16] [--work DIR] [--json]

Rows, none larger than the preset:

    preset             the preset's types, llama.cpp's encoders with importance
    preset, H          its types, encoded under the Hessian of the inputs
    preset, A          its types, encoded under the Fisher-weighted one
    preset, H+A        the same under the blend of both
    preset, A of q k v  the Fisher-weighted one for queries, keys and values, H for all others; and so of `ffn_down`
    preset, engine     its types, encoded under what llama.cpp shows, keys and values weighed by attention
    mix, importance    types from the knapsack, llama.cpp's encoders with importance, that of a tied embedding included
    mix, H             types from the knapsack, encoded under the Hessian of the inputs
    mix, A             the same under the Fisher-weighted one
    mix, H+A           the same under the blend of both; an embedding is weighed as output head only
    mix, H+A+M         the same with the embedding's look-up role: the first mix of `--statistics gradients`
    mix, engine        types and encoding by what llama.cpp shows: the first mix of `kvant optimize`

H, A and M are measured with gradients (torch). Seconds are those of encoding on all cores; all rows but the first need
the statistics as well. Every row is printed and
kept in DIR when it is done.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvant.allocate.plan import plan_choice
from kvant.allocate.search import types_of
from kvant.allocate.solver import solve
from kvant.calibrate.statistics import Statistics
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.corpora import corpus
from kvant.evaluate.score import score
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Entry, Importance
from kvant.quant.plan import Plan
from kvant.quant.presets import plan_preset
from kvant.recipes.measure.base import prepare_base
from kvant.recipes.measure.calibration import Calibration, Way, calibrate
from kvant.recipes.targets.gguf.options import rounding_options
from kvant.recipes.targets.gguf.write import predict_size, quantize

WAYS: tuple[Way, Way] = ("gradients", "engine")

Known = Mapping[str, Importance | Curvatures]


def main() -> None:
    """Make, measure and print every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--presets", default="Q4_K_M,Q2_K")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/ablation"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = open_model(options.model)
    calibration, shown = (
        calibrate(model, "bundled", windows=options.windows, way=way, threads=options.threads) for way in WAYS
    )
    _, base = prepare_base(options.model, text=corpus(), context=512, chunks=options.chunks, threads=options.threads)
    rows = []
    for preset in options.presets.split(","):
        for name, plan, known in variants(model, calibration, shown, preset, options.threads):
            rows.append(measured(model, f"{preset}: {name}", plan, known, base, options))
            if not options.json:
                print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()))
    if options.json:
        print(json.dumps(rows, indent=2))


def variants(
    model: Model, calibration: Calibration, shown: Calibration, preset: str, threads: int
) -> Iterator[tuple[str, Plan, Known]]:
    """Yield the rows of one preset: name, block types, and what the encoders know, by gradients and by the engine."""
    statistics = calibration.statistics
    plan = plan_preset(model, preset, has_importance=True)
    importance = calibration.importance
    h, a, both, every = (under(calibration, statistics, roles) for roles in ("H", "A", "HA", "HAM"))
    size = predict_size(model, plan, importance)
    mix, by_engine = (best_mix(model, known, size, threads) for known in (calibration, shown))
    yield "preset", plan, {"importance": importance}
    yield "preset, H", plan, {"curvatures": h}
    yield "preset, A", plan, {"curvatures": a}
    yield "preset, H+A", plan, {"curvatures": both}
    for parts in (("attn_q", "attn_k", "attn_v"), ("ffn_down",)):
        label = " ".join(part.removeprefix("attn_") for part in parts)
        yield f"preset, A of {label}", plan, {"curvatures": of_parts(a, h, parts)}
    yield "preset, engine", plan, {"curvatures": shown.curvatures}
    yield "mix, importance", mix, {"importance": with_head(importance, statistics)}
    yield "mix, H", mix, {"curvatures": h}
    yield "mix, A", mix, {"curvatures": a}
    yield "mix, H+A", mix, {"curvatures": both}
    yield "mix, H+A+M", mix, {"curvatures": every}
    yield "mix, engine", by_engine, {"curvatures": shown.curvatures}


def under(calibration: Calibration, statistics: Statistics, roles: str) -> Curvatures:
    """Return Hessians mixed of the inputs' second moment H, the Fisher-weighted A and the look-up's M."""

    def hessian(name: str) -> Sequence[np.ndarray]:
        found = dict(zip("HAM" if name in statistics.groups else "M", statistics.moments(name), strict=False))
        return [found[role] for role in roles if role in found] or list(found.values())

    return replace(calibration.curvatures, hessian=hessian, sha256=f"{calibration.sha256}-{roles}")


def of_parts(some: Curvatures, others: Curvatures, parts: tuple[str, ...]) -> Curvatures:
    """Return the Hessians of one for tensors of some names, those of the other for all else."""

    def hessian(name: str) -> np.ndarray | Sequence[np.ndarray]:
        return (some if any(part in name for part in parts) else others).hessian(name)

    return replace(others, hessian=hessian, sha256=f"{others.sha256}-{'-'.join(parts)}")


def with_head(importance: Importance, statistics: Statistics) -> Importance:
    """Add the importance of the output head, which a tied embedding is, to what llama.cpp measures."""
    name = next(iter(set(statistics.groups) - set(importance.entries)))
    mean = statistics.hessian(name).diagonal()
    head = Entry(sums=mean[None].astype(np.float32), counts=np.ones(1, np.float32))
    return replace(importance, entries={**importance.entries, name: head})


def best_mix(model: Model, calibration: Calibration, size: int, threads: int) -> Plan:
    """Return the mix of block types that is predicted to lose least in a file of at most `size` bytes."""
    options = rounding_options(model, calibration, threads=threads)
    most = sum(max(option.n_bytes for option in kinds) for kinds in options.values())
    solution = solve(options, most)
    least = plan_choice(model, types_of(solution.at(solution.least_bytes)), preset="kvant")
    rest = predict_size(model, least, None, calibration.curvatures) - solution.least_bytes
    return plan_choice(model, types_of(solution.at(size - rest)), preset="kvant")


def measured(
    model: Model, name: str, plan: Plan, known: Known, base: BaseLogits, options: argparse.Namespace
) -> dict[str, object]:
    """Encode and measure one row, or take what was kept."""
    stem = "-".join("".join(c if c.isalnum() else " " for c in name).split())
    kept, file = options.work / f"{stem}-{base.key[:16]}.json", options.work / f"{stem}.gguf"
    if not kept.exists():
        start = time.perf_counter()
        quantize(model, plan, file, **known, threads=options.threads, overwrite=True)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        found = score(file, base, speed=False, threads=options.threads)
        row = {
            "name": name, "MB": file.stat().st_size / 1e6, "mean": found.kld_mean, "se": found.kld_se,
            "median": found.kld_median, "q99": found.kld_p99, "top1": 100 * found.top1, "encoding_s": seconds,
        }  # fmt: skip
        file.unlink()
        kept.write_text(json.dumps(row))
    row = json.loads(kept.read_text())
    return dict(row)


if __name__ == "__main__":
    main()
