"""The importance matrix as llama.cpp measures it: of every input channel the sum of x², every token counted once.

One pass forward, no gradients. `statistics.py` measures far more and weighs domains equally; this is what an importance
file holds, and what upstream's `llama-imatrix` gives on the same tokens.

Source: llama.cpp `tools/imatrix/imatrix.cpp`; parity in tests/parity/test_importance.py.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kvant.calibrate.decoder import Decoder
from kvant.files import atomic_write
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Entry, Importance

BATCH_TOKENS = 2048
"""Tokens that go through a layer at a time, but one window at least."""


def measure(
    model: Model, tokens: np.ndarray, *, directory: Path, datasets: tuple[str, ...] = (), progress: Progress = SILENT
) -> Importance:
    """Run a model over windows of tokens and sum the squares of what the linears inside its layers are multiplied with.

    One layer's weights and one batch are in memory at a time. What is finished is not measured again. Until the end,
    `directory` also holds one layer's hidden states, twice for a moment: windows * tokens * width * 4 bytes.

    Args:
        model: A model that `Decoder` can run.
        tokens: Token ids, int32 [windows, tokens].
        directory: Where sums are kept, of these inputs alone; made if absent.
        datasets: Names of the texts, to note in the result.
        progress: Told of layers.

    Raises:
        UnsupportedFormatError: The model cannot be run here.
        ValueRangeError: A token is not in the vocabulary.
        KvantError: The disk is full.
    """
    decoder = Decoder(model)
    directory.mkdir(parents=True, exist_ok=True)
    first = _first_unfinished(directory, decoder.n_layers)
    progress.start("forward", decoder.n_layers - first, "layers")
    for layer in range(first, decoder.n_layers):
        _measure_layer(decoder, layer, tokens, directory)
        progress.advance("forward", 1)
    progress.finish("forward")
    for path in directory.glob("hidden-*.npy"):
        path.unlink()
    count = np.array([tokens.size], np.float32)
    entries: dict[str, Entry] = {}
    for layer in range(decoder.n_layers):
        with np.load(_sums(directory, layer)) as sums:
            found = {name: sums[name].astype(np.float32)[None] for name in decoder.names(layer)}
        entries |= {name: Entry(sums=values, counts=count) for name, values in found.items()}
    windows, length = tokens.shape
    return Importance(entries=entries, datasets=datasets, n_chunks=windows, chunk_size=length)


def _first_unfinished(directory: Path, n_layers: int) -> int:
    """Return the layer to go on with: the first without sums, or an earlier one whose input is still there."""
    unfinished = next((layer for layer in range(n_layers) if not _sums(directory, layer).is_file()), n_layers)
    if unfinished == n_layers or _hidden(directory, unfinished).is_file():
        return unfinished
    return 0


def _measure_layer(decoder: Decoder, layer: int, tokens: np.ndarray, directory: Path) -> None:
    """Write a layer's sums, and its output as the next one's input."""
    sums: dict[str, np.ndarray] = {}

    def observe(names: tuple[str, ...], x: torch.Tensor) -> None:
        squares = x.flatten(0, -2).double().square().sum(0).numpy()
        sums.update({name: sums.get(name, 0) + squares for name in names})

    shape = (*tokens.shape, decoder.width)
    weights = decoder.weights(layer)
    with torch.no_grad(), atomic_write(_hidden(directory, layer + 1)) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for x in _inputs(decoder, layer, tokens, directory):
            file.write(decoder.steps(layer, x, weights, observe).numpy().data)
    with atomic_write(_sums(directory, layer)) as file:
        np.savez(file, **sums)  # type: ignore[arg-type, unused-ignore]
    _hidden(directory, layer).unlink(missing_ok=True)


def _inputs(decoder: Decoder, layer: int, tokens: np.ndarray, directory: Path) -> Iterator[torch.Tensor]:
    """Yield a layer's input, float32 [some windows, tokens, width]."""
    step = max(1, BATCH_TOKENS // tokens.shape[1])
    hidden = np.load(_hidden(directory, layer), mmap_mode="r") if layer else None
    for at in range(0, len(tokens), step):
        if hidden is None:
            yield decoder.embed(tokens[at : at + step])
        else:
            yield torch.from_numpy(np.array(hidden[at : at + step]))


def _hidden(directory: Path, boundary: int) -> Path:
    return directory / f"hidden-{boundary}.npy"


def _sums(directory: Path, layer: int) -> Path:
    return directory / f"squares-{layer}.npz"
