"""kvant's figures against those of upstream's own tool on the same tokens.

The expected values were printed by `llama-perplexity --kl-divergence` of llama.cpp b11434 (built from source, AVX2) on
`kvant/evaluate/data/held-out/prose.txt`, context 512, 4 chunks, with the F32 file of the reference model as the base
and `llama-quantize` files as the variants. kvant's variants have the same tensor bytes, its engine is another build of
llama.cpp: rounding differs, so the figures may, too, but by much less than their standard errors.
"""

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from kvant.evaluate.compact import compact
from kvant.evaluate.metrics import exact_kld, score_rows
from kvant.evaluate.score import VariantScore
from kvant.formats.open import open_model
from kvant.quant.presets import plan_preset
from kvant.recipes.measure.base import f32_file
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.llamacpp import LlamaCpp

TEXT_SHA256 = "bb166e4d5b095925fa5fbcdbf93efa4dc56f5d8e40647169ab2c2bd178ca3f26"

UPSTREAM = {
    "Q8_0": {"kld_mean": 0.004625, "kld_median": 0.003687, "kld_p95": 0.011747, "kld_p99": 0.021613,
             "kld_p999": 0.049345, "rms_dp": 0.01657, "top1": 0.96667, "ppl": 26.202347, "ppl_ratio": 1.002916},
    "Q4_K_M": {"kld_mean": 0.074086, "kld_median": 0.055427, "kld_p95": 0.211852, "kld_p99": 0.446746,
               "kld_p999": 0.713564, "rms_dp": 0.07947, "top1": 0.85686, "ppl": 29.288025, "ppl_ratio": 1.121023},
}  # fmt: skip

# Relative, but for top1 absolute: of 1,020 positions a handful change sides between builds, and a high quantile is a
# matter of one or two positions.
TOLERANCE = {"kld_mean": 0.01, "kld_median": 0.02, "ppl": 0.005, "ppl_ratio": 0.005, "rms_dp": 0.02,
             "kld_p95": 0.05, "kld_p99": 0.05, "kld_p999": 0.10}  # fmt: skip
TOP1_TOLERANCE = 0.005


def prose() -> Path:
    path = Path(str(resources.files("kvant.evaluate").joinpath("data", "held-out", "prose.txt")))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == TEXT_SHA256, "the figures below belong to another text"
    return path


@pytest.mark.model
@pytest.mark.parametrize("preset", ["Q4_K_M", pytest.param("Q8_0", marks=pytest.mark.slow)])
def test_figures_agree_with_upstream(reference_model: Path, tmp_path: Path, preset: str) -> None:
    model = open_model(reference_model)
    variant = tmp_path / f"{preset}.gguf"
    quantize(model, plan_preset(model, preset), variant)
    result = evaluate([variant], against=reference_model, text=prose(), chunks=4, speed=False, floors=False)
    assert result.n_positions == 4 * 255
    compare(result.scores[0])
    check_compact_form(f32_file(reference_model)[0], variant)


def compare(score: VariantScore) -> None:
    expected = UPSTREAM[score.name]
    for key, tolerance in TOLERANCE.items():
        assert getattr(score, key) == pytest.approx(expected[key], rel=tolerance), f"{score.name} {key}"
    assert score.top1 == pytest.approx(expected["top1"], abs=TOP1_TOLERANCE), score.name


def check_compact_form(base: Path, variant: Path) -> None:
    """The compact base logits give the mean that the full vocabulary gives, on the first window, within 0.5 %."""
    text = prose().read_text(encoding="utf-8")
    logits = []
    for path in (base, variant):
        with LlamaCpp(path, n_ctx=512, n_threads=2, all_logits=True) as engine:
            window = engine.tokenize(text, add_special=True)[:512]
            logits.append(engine.logits(window, first=256)[:-1].copy())
    exact = exact_kld(*logits).mean()
    found = score_rows(logits[1], compact(logits[0], window[257:], seed=0))
    assert found.kld.mean() == pytest.approx(exact, rel=0.005)
    assert abs(found.kld.mean() - exact) < 5 * np.sqrt(found.kld_variance.sum()) / len(found.kld)
