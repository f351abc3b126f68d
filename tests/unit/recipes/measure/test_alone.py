"""Two runs at once want the same thing of the cache: one makes it, the other waits and takes it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvant.evaluate.corpora import corpus
from kvant.progress import Silent
from kvant.recipes.measure.base import f32_file, prepare_base
from kvant.recipes.measure.calibration import Calibration, calibrate
from kvant.recipes.source import open_model
from kvant.testing.tiny_models import write_tiny_model

RUNS = 3


class Counted(Silent):
    """Counts tasks that begin."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def start(self, task: str, total: float, unit: str) -> None:  # noqa: ARG002 - as it is called
        """Count it."""
        self.begun.append(task)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", num_hidden_layers=1)


def test_statistics_are_measured_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path))
    counted, begin = Counted(), threading.Barrier(RUNS)

    def run(_: int) -> Calibration:
        model = open_model(tiny)
        begin.wait()
        return calibrate(model, "bundled", windows=2, threads=1, progress=counted)

    with ThreadPoolExecutor(RUNS) as pool:
        found = list(pool.map(run, range(RUNS)))
    assert len({one.sha256 for one in found}) == 1
    assert counted.begun.count("statistics") == 1
    assert counted.begun.count("probes") == 1


def test_the_original_is_written_and_run_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(tmp_path))
    text, begin = corpus("default", "held-out"), threading.Barrier(RUNS)

    def run(_: int) -> tuple[Path, np.ndarray]:
        model = open_model(tiny)
        begin.wait()
        file, base = prepare_base(model, text=text, context=64, chunks=2, threads=1)
        return file, base.windows.tokens

    with ThreadPoolExecutor(RUNS) as pool:
        found = list(pool.map(run, range(RUNS)))
    assert {file for file, _ in found} == {f32_file(open_model(tiny))[0]}
    for _, tokens in found:
        np.testing.assert_array_equal(tokens, found[0][1])
