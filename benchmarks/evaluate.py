"""What measuring costs beside the engine, and how exact the compact base logits are.

For a base (F32 GGUF) and some variants, on the first windows of the bundled held-out text: processor seconds per window
of the engine, of compressing the base's logits and of comparing a variant with them; bytes kept per scored position
beside those of plain float16; and the mean KL divergence from the compact form beside the exact one over the whole
vocabulary.

    python benchmarks/evaluate.py BASE.gguf VARIANT.gguf... [--chunks 4] [--threads 2] [--json]
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from kvant.devices.detect import detect
from kvant.evaluate.baselogits import engine_name
from kvant.evaluate.compact import CompactRows, compact
from kvant.evaluate.corpora import corpus
from kvant.evaluate.metrics import exact_kld, join, score_rows, summarize
from kvant.evaluate.windows import Windows, cut
from kvant.runtime.llamacpp import LlamaCpp
from kvant.runtime.process import EngineProcess


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("variants", type=Path, nargs="+")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with EngineProcess() as engine:
        engine.open(options.base, n_ctx=options.context, n_threads=1, vocab_only=True)
        windows = cut(engine, corpus(), context=options.context, chunks=options.chunks)
    base_logits, base_row, rows = run_base(options.base, windows, options.threads)
    table = [base_row, *(run_variant(v, windows, base_logits, rows, options.threads) for v in options.variants)]
    machine = detect(measure=False)
    document = {
        "machine": f"{machine.cpu}, {options.threads} threads", "engine": engine_name(),
        "numpy": np.__version__, "python": platform.python_version(), "rows": table,
    }  # fmt: skip
    if options.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{document['machine']}; {document['engine']}; numpy {document['numpy']}")
    for row in table:
        print(
            "  ".join(
                f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


def run_windows(path: Path, windows: Windows, threads: int) -> tuple[list[np.ndarray], float]:
    """Return the logits of every window and the engine's processor seconds per window."""
    with LlamaCpp(path, n_ctx=windows.context, n_threads=threads, all_logits=True) as engine:
        engine.logits(windows.tokens[0], first=windows.first)
        start = time.process_time()
        found = [engine.logits(w, first=windows.first)[:-1].copy() for w in windows.tokens]
        return found, (time.process_time() - start) / len(found)


def run_base(
    path: Path, windows: Windows, threads: int
) -> tuple[list[np.ndarray], dict[str, object], list[CompactRows]]:
    """Run and compress the base."""
    logits, engine_s = run_windows(path, windows, threads)
    start = time.process_time()
    rows = [compact(found, windows.labels[i], seed=i) for i, found in enumerate(logits)]
    compress_s = (time.process_time() - start) / len(rows)
    kept = sum(getattr(rows[0], name)[0].nbytes for name in CompactRows.__slots__ if name != "top")
    return logits, {
        "name": path.stem, "engine_cpu_s": engine_s, "compress_cpu_s": compress_s, "share": compress_s / engine_s,
        "bytes_per_position": kept, "float16_bytes": 2 * logits[0].shape[1],
        "tail_mass": float(np.mean([r.tail_p.mean() for r in rows])),
    }, rows  # fmt: skip


def run_variant(
    path: Path, windows: Windows, base_logits: list[np.ndarray], rows: list[CompactRows], threads: int
) -> dict[str, object]:
    """Run a variant; compare it with the compact form and with the whole vocabulary."""
    logits, engine_s = run_windows(path, windows, threads)
    start = time.process_time()
    scores = [score_rows(found, base) for found, base in zip(logits, rows, strict=True)]
    score_s = (time.process_time() - start) / len(rows)
    exact = np.concatenate([exact_kld(b, v) for b, v in zip(base_logits, logits, strict=True)])
    found = join(scores).kld
    return {
        "name": path.stem, "engine_cpu_s": engine_s, "score_cpu_s": score_s, "share": score_s / engine_s,
        "kld_exact": float(exact.mean()), "kld_compact": float(found.mean()),
        "error_of_mean_%": float(100 * (found.mean() / exact.mean() - 1)),
        "error_of_median_%": float(100 * (np.median(found) / np.median(exact) - 1)),
        "stated_se_%": float(100 * summarize(scores).kld_sampling_se / exact.mean()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
