"""Write the first mix of `kvant optimize` at given sizes, and the same text's importance, for quality.py.

    python benchmarks/mixes.py MODEL --megabytes 105.4,93.5,78 [--text bundled|second|self|FILE] [--windows 64] -o DIR
    python benchmarks/quality.py MODEL DIR/mix-*.gguf --imatrix DIR/imatrix.gguf

`second` is the other half of the bundled calibration text, so that a gain can be looked at on texts that share nothing.
`--statistics gradients` measures as `kvant optimize` does with that option. `--types` leaves block types out, which
saves time on a large model. `--shared-moments` encodes experts under the second moment of all tokens, and leaves the
choice of types as it was. Minutes, minutes of processors and peak memory of each step are printed.
"""

import argparse
import resource
import time
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import get_args

from kvant.allocate.plan import plan_choice
from kvant.allocate.search import types_of
from kvant.allocate.solver import solve
from kvant.evaluate.corpora import Corpus, Part, corpus, mixture
from kvant.formats.imatrix import write_imatrix
from kvant.formats.open import open_model
from kvant.recipes.measure.calibration import Way, calibrate
from kvant.recipes.targets.gguf.options import TYPES, rounding_options
from kvant.recipes.targets.gguf.write import predict_size, quantize

SECOND = "second"
MEGABYTE = 1_000_000


def main() -> None:
    """Calibrate, choose, encode and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--megabytes", required=True)
    parser.add_argument("--text", default="bundled")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--statistics", choices=get_args(Way), default="engine")
    parser.add_argument("--shared-moments", action="store_true")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    model = open_model(options.model)
    text = second_half(corpus("default", "calibration")) if options.text == SECOND else options.text
    calibration = calibrate(
        model, text, windows=options.windows, way=options.statistics, threads=options.threads
    )  # fmt: skip
    clock.tell(f"statistics of {calibration.windows.tokens.size} tokens of {calibration.text.label}")
    write_imatrix(options.out / "imatrix.gguf", calibration.importance, overwrite=True)
    choices = rounding_options(model, calibration, types=options.types.split(","), threads=options.threads)
    clock.tell("rounding errors")
    solution = solve(choices, sum(max(option.n_bytes for option in kinds) for kinds in choices.values()))
    clock.tell("knapsack")
    least = types_of(solution.at(solution.least_bytes))
    curvatures = replace(calibration.curvatures, expert=None) if options.shared_moments else calibration.curvatures
    rest = predict_size(model, plan_choice(model, least, preset="least"), None, curvatures)
    for megabytes in options.megabytes.split(","):
        room = round(float(megabytes) * MEGABYTE) - rest + solution.least_bytes
        choice = solution.at(room)
        plan = plan_choice(model, types_of(choice), preset=f"mix-{megabytes}")
        file = options.out / f"mix-{megabytes}.gguf"
        quantize(model, plan, file, curvatures=curvatures, threads=options.threads, overwrite=True)
        clock.tell(f"{file}: predicted KLD {sum(option.cost for option in choice.values()):.4f}; {counts(plan.types)}")


class Clock:
    """Tells how long every step took, and the most memory so far."""

    def __init__(self) -> None:
        self._last, self._last_cpu = time.monotonic(), cpu_s()

    def tell(self, step: str) -> None:
        """Print minutes since the last step, those of processors, and the peak of resident memory, in gigabytes."""
        now, cpu, peak = time.monotonic(), cpu_s(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spent, worked = (now - self._last) / 60, (cpu - self._last_cpu) / 60
        print(f"{spent:6.1f} min  {worked:6.2f} CPU min  {peak / 1e9:5.2f} GB  {step}", flush=True)
        self._last, self._last_cpu = now, cpu


def cpu_s() -> float:
    """Return processor seconds of this process and of the engine's processes that have ended."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def second_half(text: Corpus) -> Corpus:
    """Return what lies behind the middle of every domain."""
    halves = [(part.domain, part.text[len(part.text) // 2 :]) for part in text.parts]
    return mixture(
        text.name, SECOND, tuple(Part(domain=d, text=t, sha256=sha256(t.encode()).hexdigest()) for d, t in halves)
    )


def counts(types: dict[str, str]) -> str:
    """Return how many tensors have each type."""
    kinds: Iterable[str] = sorted(set(types.values()))
    return ", ".join(f"{sum(other == kind for other in types.values())} {kind}" for kind in kinds)


if __name__ == "__main__":
    main()
