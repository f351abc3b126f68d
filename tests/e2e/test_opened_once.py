"""A model is opened once per job, and engines are started as often as the work needs."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvant.formats import open as opening
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.recipes import source as sources
from kvant.recipes.convert.convert import convert
from kvant.recipes.inspect.inspect import inspect
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.optimize import pipeline
from kvant.recipes.optimize.request import Request
from kvant.runtime import child
from kvant.testing.tiny_models import write_tiny_model

ENGINE, TEMPLATE, TOKENIZER = "kvant.runtime.worker", "kvant.runtime.template", "tokenizer_worker.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "little-llama", num_hidden_layers=1)


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """Count the paths that are opened, wherever the function was imported to."""
    counted: Counter[Path] = Counter()
    real = open_model

    def counting(path: Path | str, **settings: Any) -> Model:
        counted[Path(path)] += 1
        return real(path, **settings)

    ours = [m for name, m in sys.modules.items() if name.startswith("kvant.") and hasattr(m, "open_model")]
    for module in [m for m in ours if m.open_model is not sources.open_model]:  # source.py goes on to this
        monkeypatch.setattr(module, "open_model", counting)
    assert opening.open_model is counting
    return counted


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the processes that are started, by what runs in them."""
    counted: Counter[str] = Counter()
    start = child.Child.__init__

    def counting(self: child.Child, policy: Any, *words: str, **settings: Any) -> None:
        counted[next(word for word in words if word != "-m").rpartition("/")[2]] += 1
        start(self, policy, *words, **settings)

    monkeypatch.setattr(child.Child, "__init__", counting)
    return counted


def request(tiny: Path, out: Path, **changes: object) -> Request:
    return msgspec.structs.replace(
        Request(source=tiny, calibrate="none", out=out, presets=("Q8_0", "Q4_K_M"), chunks=1, threads=1), **changes
    )


def test_a_plain_optimize(tiny: Path, tmp_path: Path, opens: Counter[Path], started: Counter[str]) -> None:
    pipeline.optimize(request(tiny, tmp_path))
    assert opens[tiny] == 1
    # Loading; windows and base logits; both floors; two variants; two continuations; the tokenizer of the pick. And for
    # each file that is written, a variant's or a floor's, whether the engine will load it.
    assert started[ENGINE] <= 11
    assert started[TOKENIZER] == 1
    assert started[TEMPLATE] <= 5  # the pick's template is its original's


def test_optimize_with_calibration(tiny: Path, tmp_path: Path, opens: Counter[Path]) -> None:
    pytest.importorskip("torch")
    text = tmp_path / "words.txt"
    text.write_text("".join(f"word {i} and some other words of text {i * 7}. " for i in range(1500)))
    pipeline.optimize(request(tiny, tmp_path / "out", calibrate=str(text), calibrate_windows=1, refinements=0))
    assert opens[tiny] == 1


def test_evaluate_opens_each_file_once(tiny: Path, tmp_path: Path, opens: Counter[Path]) -> None:
    convert(tiny, tmp_path / "a.gguf", to="gguf", type="Q8_0")
    opens.clear()
    evaluate([tmp_path / "a.gguf"], against=tiny, chunks=1, threads=1, speed=False, floors=False)
    assert (opens[tiny], opens[tmp_path / "a.gguf"]) == (1, 1)


def test_jobs_take_an_open_model(tiny: Path, tmp_path: Path, opens: Counter[Path]) -> None:
    model = opening.open_model(tiny)
    opens.clear()
    assert inspect(model) == inspect(tiny)
    opens.clear()
    made = convert(model, tmp_path / "a.gguf", to="gguf", type="F16")
    assert made.source == str(tiny)
    found = evaluate([tmp_path / "a.gguf"], against=model, chunks=1, threads=1, speed=False, floors=False)
    assert found.base == str(tiny)
    assert opens[tiny] == 0
