"""How well timed block types predict the speed of real files: presets of a model, predicted and measured in the engine.

Speed is that of the fastest single token of a generation 256 tokens deep, over several turns in which presets take
part in rotation; the median over 32 tokens, as reports give it, stands beside it. On a busy machine the two differ.

    python benchmarks/decode_time.py [--threads N] [--turns N] [--json] [MODEL]
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from kvant.devices.detect import detect
from kvant.devices.profiles import profile_of
from kvant.formats.open import open_model
from kvant.quant.presets import plan_preset
from kvant.recipes.targets.gguf import kept
from kvant.recipes.targets.gguf.pace import matrix_types, pace_for
from kvant.runtime.engines.base import SPEED
from kvant.runtime.process import EngineProcess

PRESETS = ("Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "IQ4_NL", "Q4_0", "Q3_K_M", "Q2_K", "F16")


def measure(model_path: Path, threads: int, turns: int) -> dict[str, object]:
    """Time block types, then presets, and compare."""
    model, machine = open_model(model_path), detect()
    plans = {name: plan_preset(model, name) for name in PRESETS}
    kinds = set().union(*(matrix_types(model, plan) for plan in plans.values()))
    pace = pace_for(model, profile_of(machine), machine, kinds, threads=threads)
    files = {name: kept.encoded(model, plan) for name, plan in plans.items()}
    fastest, medians = dict.fromkeys(PRESETS, math.inf), {name: list[float]() for name in PRESETS}
    for _ in range(turns):
        for name in PRESETS:
            with EngineProcess() as engine:
                engine.open(files[name], n_ctx=2 * SPEED.n_prompt, n_threads=threads)
                found = engine.speed(n_prompt=SPEED.n_prompt, n_generate=SPEED.n_generate, repeats=3)
            fastest[name] = min(fastest[name], found.fastest_s)
            medians[name].append(found.tg_tok_s)
    for plan in plans.values():
        kept.forget(model, plan)
    return {
        "cpu": machine.cpu,
        "threads": threads,
        "overhead_ms": 1e3 * pace.overhead_s,
        "ps_per_weight": {name: 1e12 * seconds for name, seconds in sorted(pace.weight_s.items())},
        "presets": {
            name: {
                "predicted_tok_s": pace.speed(model, plans[name].types),
                "fastest_tok_s": 1 / fastest[name],
                "median_tok_s": statistics.median(medians[name]),
            }
            for name in PRESETS
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = measure(asked.model, asked.threads, asked.turns)
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['cpu']}, {asked.threads} threads; overhead {found['overhead_ms']:.2f} ms per token")
    print("ps per weight: " + ", ".join(f"{name} {ps:.1f}" for name, ps in found["ps_per_weight"].items()))
    print(f"{'preset':8} {'predicted':>10} {'fastest':>10} {'off':>7} {'median':>10}  tokens/s")
    for name, row in found["presets"].items():
        off = row["predicted_tok_s"] / row["fastest_tok_s"] - 1
        print(
            f"{name:8} {row['predicted_tok_s']:10.1f} {row['fastest_tok_s']:10.1f} {100 * off:+6.1f}% "
            f"{row['median_tok_s']:10.1f}"
        )


if __name__ == "__main__":
    main()
