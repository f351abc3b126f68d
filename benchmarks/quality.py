"""KL divergence at equal file size: kvant's files beside the best that llama.cpp's presets reach with importance.

Every preset, plain and --pure, is encoded with the importance given - kvant writes llama-quantize's bytes, see
tests/parity - and measured in llama.cpp on the bundled held-out text against the F32 model. Against each of OURS stands
the preset of the lowest mean KLD among those at most 0.5 % larger. The interval is that of the ratio of means, 95 %, by
drawing windows of text with replacement within their domain, the same for both. `worse` lists what does not improve:
mean, median, 99 % quantile or top-1 agreement, over all text or on one domain.

    llama-imatrix -m F32.gguf -f calibration.txt -o imatrix.gguf -c 512
    python benchmarks/quality.py MODEL OURS.gguf... --imatrix imatrix.gguf [--chunks 0] [--work DIR] [--json]

Measurements are kept in DIR, so that it can be stopped and started again.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.corpora import corpus
from kvant.evaluate.score import score_windows
from kvant.files import sha256_file
from kvant.formats.imatrix import read_imatrix
from kvant.formats.open import open_model
from kvant.quant.plan import Plan
from kvant.quant.presets import plan_preset
from kvant.recipes.measure.base import prepare_base
from kvant.recipes.targets.gguf.presets import DEFAULT_PRESETS
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.process import EngineProcess

OVER = 1.005
RESAMPLES = 4000


@dataclass(frozen=True)
class Measured:
    """A file's KL divergence, float64 [windows, positions], and whether it agrees on the top token, by position."""

    name: str
    size: int
    kld: np.ndarray
    same_top: np.ndarray


def main() -> None:
    """Measure, and print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("ours", type=Path, nargs="*")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--presets", default=",".join(DEFAULT_PRESETS))
    parser.add_argument("--chunks", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/quality"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    _, base = prepare_base(options.model, text=corpus(), context=512, chunks=options.chunks, threads=options.threads)
    peers = list(presets(options, base))
    ours = [measured(path, path.stem, sha256_file(path)[:16], base, options) for path in options.ours]
    rows = [against(file, peers, base.windows.domains) for file in ours]
    if options.json:
        print(json.dumps({"peers": [facts(p) for p in peers], "ours": rows}, indent=2))
        return
    for peer in sorted(peers, key=lambda p: p.size):
        print(line(facts(peer)))
    for row in rows:
        print(line(row))


def presets(options: argparse.Namespace, base: BaseLogits) -> Iterator[Measured]:
    """Measure every preset; those that come to the same types once."""
    model, importance = open_model(options.model), read_imatrix(options.imatrix)
    seen: set[tuple[tuple[str, str], ...]] = set()
    for preset in options.presets.split(","):
        for pure in (False, True):
            plan = plan_preset(model, preset, has_importance=True, pure=pure)
            types = tuple(sorted(plan.types.items()))
            if types in seen:
                continue
            seen.add(types)
            name, key = preset + " --pure" * pure, f"{plan.sha256[:16]}-{importance.sha256[:16]}"
            file = options.work / f"{key}.gguf"

            def make(file: Path = file, plan: Plan = plan) -> None:
                quantize(model, plan, file, importance=importance, threads=options.threads, overwrite=True)

            if not kept(options, key, base).exists():
                make()
            yield measured(file, name, key, base, options)
            file.unlink(missing_ok=True)


def kept(options: argparse.Namespace, key: str, base: BaseLogits) -> Path:
    """Return where the measurement of a file is kept."""
    path: Path = options.work / f"{key}-{base.key[:16]}.npz"
    return path


def measured(file: Path, name: str, key: str, base: BaseLogits, options: argparse.Namespace) -> Measured:
    """Measure a file, or take what was kept."""
    path = kept(options, key, base)
    if not path.exists():
        with EngineProcess() as engine:
            engine.open(file, n_ctx=base.windows.context, n_threads=options.threads, all_logits=True)
            rows = score_windows(engine, base)
        np.savez(
            path,
            kld=np.stack([r.kld for r in rows]),
            top=np.stack([r.same_top for r in rows]),
            size=file.stat().st_size,
        )
    with np.load(path) as found:
        return Measured(name, int(found["size"]), found["kld"], found["top"])


def against(file: Measured, peers: Sequence[Measured], domains: Sequence[str]) -> dict[str, object]:
    """Compare a file with the best preset of its size."""
    best = min((p for p in peers if p.size <= file.size * OVER), key=lambda p: p.kld.mean(), default=None)
    if best is None:
        return {**facts(file), "against": None}
    names = np.array(domains)
    worse = []
    for domain in (None, *sorted(set(domains))):
        rows = slice(None) if domain is None else names == domain
        a, b = (figures(m.kld[rows], m.same_top[rows]) for m in (file, best))
        flipped = {**{k: a[k] < b[k] for k in ("mean", "median", "q99")}, "top1": a["top1"] > b["top1"]}
        worse += [f"{domain or 'all'}:{name}" for name, better in flipped.items() if not better]
    low, high = ratio_interval(file.kld.mean(axis=1), best.kld.mean(axis=1), names)
    return {
        **facts(file), "against": best.name, "against_MB": best.size / 1e6, "against_mean": float(best.kld.mean()),
        "ratio": float(file.kld.mean() / best.kld.mean()), "low": low, "high": high,
        "by_domain": {
            d: round(float(file.kld[names == d].mean() / best.kld[names == d].mean()), 3) for d in sorted(set(domains))
        },
        "worse": worse,
    }  # fmt: skip


def ratio_interval(ours: np.ndarray, theirs: np.ndarray, domains: np.ndarray) -> tuple[float, float]:
    """95 % interval of the ratio of means over windows, float64 [windows], drawn in pairs within their domain."""
    random = np.random.default_rng(1)
    drawn = np.concatenate(
        [random.choice(np.flatnonzero(domains == d), (RESAMPLES, (domains == d).sum())) for d in np.unique(domains)],
        axis=1,
    )
    low, high = np.quantile(ours[drawn].mean(axis=1) / theirs[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def facts(file: Measured) -> dict[str, object]:
    """What a file is by itself."""
    return {"name": file.name, "MB": file.size / 1e6, **figures(file.kld, file.same_top)}


def figures(kld: np.ndarray, same_top: np.ndarray) -> dict[str, float]:
    """Mean, median and 99 % quantile of the KL divergence, and top-1 agreement in percent."""
    return {
        "mean": float(kld.mean()), "median": float(np.median(kld)), "q99": float(np.quantile(kld, 0.99)),
        "top1": 100 * float(same_top.mean()),
    }  # fmt: skip


def line(row: dict[str, object]) -> str:
    """Return a row as text."""
    return "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


if __name__ == "__main__":
    main()
