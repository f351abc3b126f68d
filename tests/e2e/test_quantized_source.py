"""From a quantized checkpoint to a file that the engine runs: what is kept is as near as the engine's own rounding."""

from pathlib import Path

import pytest

from kvant import evaluate, quantize
from kvant.testing.tiny_models import write_tiny_model
from quantized_files import quantize_files

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("kind", ["gptq-sym", "qat"])
def test_keep_is_measured_against_what_the_source_says_and_beats_every_rounding(kind: str, tmp_path: Path) -> None:
    source = write_tiny_model("llama", tmp_path / "m")
    quantize_files(source, kind)
    files = []
    for preset in ("keep", "Q4_0", "Q8_0"):
        quantize(source, preset, tmp_path / f"{preset}.gguf")
        files.append(tmp_path / f"{preset}.gguf")
    found = evaluate(files, against=source, chunks=1, speed=False, floors=False)
    kept, four, eight = (score.kld_mean for score in found.scores)
    assert kept < 0.003
    assert kept < eight
    assert kept * 20 < four
