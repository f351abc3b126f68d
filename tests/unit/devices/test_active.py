from pathlib import Path

import pytest

from architectures import write_architecture
from kvant.devices.active import active_weights
from kvant.formats.open import open_model
from kvant.metadata import u32
from kvant.tensors import n_weights


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        # 6 of 8 experts of 3 matrices in 4 layers are left out; of an embedding that is not tied all rows but one.
        ("qwen3moe", 4 * 6 * 3 * 256 * 256 + 511 * 256),
        # Dense and tied: every weight is read, but for the rows that every layer has for each token.
        ("gemma2", 0),
        ("gemma3n", 511 * 30 * 256),
    ],
)
def test_what_one_token_reads(name: str, unread: int, tmp_path: Path) -> None:
    # A hollow file's head equals its embedding, which then counts as tied.
    path = write_architecture(name, tmp_path / "model.gguf", is_hollow=name.startswith("gemma"))
    model = open_model(path)
    assert active_weights(model) == model.n_weights - unread


def test_layers_that_predict_ahead_are_not_read(tmp_path: Path) -> None:
    path = write_architecture("gemma2", tmp_path / "model.gguf", is_hollow=True, gemma2__nextn_predict_layers=u32(1))
    model = open_model(path)
    last = sum(n_weights(tensor) for name, tensor in model.tensors.items() if name.startswith("blk.3."))
    assert active_weights(model) == model.n_weights - last
