from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kvant.calibrate import importance
from kvant.calibrate.decoder import Decoder
from kvant.calibrate.importance import measure
from kvant.errors import ValueRangeError
from kvant.model import Model
from kvant.progress import Silent
from kvant.quant.importance import Importance
from kvant.recipes.measure.base import f32_file
from kvant.recipes.source import open_model
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model

TOKENS = np.random.default_rng(5).integers(3, N_VOCAB, (5, 24), dtype=np.int32)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More cost time on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_tiny_model("qwen2", tmp_path_factory.mktemp("model"), num_hidden_layers=3))


def same(a: Importance, b: Importance) -> bool:
    return a.sha256 == b.sha256 and all(
        np.array_equal(a.entries[name].sums, b.entries[name].sums) for name in (*a.entries, *b.entries)
    )


def base(model: Model) -> Path:
    """The model as the engine runs it."""
    return f32_file(model)[0]


def test_every_token_counts_once(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "WINDOWS_AT_A_TIME", 2)
    found = measure(base(model), model, TOKENS, directory=tmp_path / "new", threads=1, datasets=("text",))
    decoder, inputs = Decoder(model), dict[str, torch.Tensor]()
    with torch.no_grad():
        hidden = decoder.embed(TOKENS)
        for layer in range(decoder.n_layers):
            hidden = decoder.steps(
                layer, hidden, decoder.weights(layer), lambda names, x: inputs.update(dict.fromkeys(names, x))
            )
    assert found.entries.keys() == inputs.keys()
    assert (found.datasets, found.n_chunks, found.chunk_size) == (("text",), 5, 24)
    for name, entry in found.entries.items():
        assert entry.counts == 120
        # The engine keeps keys and values as F16.
        np.testing.assert_allclose(entry.sums[0], inputs[name].double().square().sum((0, 1)), rtol=2e-3)
        assert found.weights_for(model.tensors[name]) is not None


class Interrupt(Silent):
    """Ends the run after a number of steps, as a person would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, _task: str, _amount: float) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_it_was(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "WINDOWS_AT_A_TIME", 2)
    whole = measure(base(model), model, TOKENS, directory=tmp_path / "whole", threads=1)
    directory = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        measure(base(model), model, TOKENS, directory=directory, threads=1, progress=Interrupt(2))
    kept = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert len(kept) == 2
    assert same(measure(base(model), model, TOKENS, directory=directory, threads=1), whole)
    assert all((directory / name).stat().st_mtime_ns == at for name, at in kept.items())


def test_tokens_of_another_vocabulary_are_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueRangeError, match="leave the vocabulary"):
        measure(base(model), model, TOKENS + N_VOCAB, directory=tmp_path, threads=1)
