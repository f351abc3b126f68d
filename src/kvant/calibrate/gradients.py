"""Second moments and Fisher curvature of every matrix of a model, measured on calibration tokens.

An error E [rows, n] in a matrix changes the distribution that the model predicts. To second order its Kullback-Leibler
divergence is half the error's square under the Fisher matrix, the expected outer product of the gradients of
log p(label) with labels drawn from the model itself. Each matrix's Fisher is approximated: tokens are independent, and
so are output rows, which share one n × n matrix. With x a token's input, g the gradient at its output, w the token
weights (sum 1):

    c = Σ w ‖g‖²        A = Σ w ‖g‖² x xᵀ / c        KLD per token ≈ 0.5 * c * trace(E A Eᵀ) / rows

The token embedding is no linear: a token takes one row of it. With g the gradient at the first hidden state,

    M = Σ w g gᵀ        KLD per token ≈ 0.5 * trace(E M Eᵀ) / rows

if all tokens came equally often. An embedding that is also the output head does both harms.

Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (2015), here
with the output side reduced to its trace, and that kept inside the average over inputs.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from kvant.calibrate.decoder import EMBEDDING, GROUPS, Decoder
from kvant.calibrate.statistics import LABELS, Statistics, digest_of, file_of, save
from kvant.calibrate.sums import Sums, add_outer, written
from kvant.errors import ValueRangeError
from kvant.files import atomic_write
from kvant.kernels import linalg, rowwise
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.tensors import n_rows

FIRST_LAYER = "blk.0"
"""Under whose name M is stored: it is measured with the first layer."""

BATCH_TOKENS = 2048
"""Tokens that go through a layer at a time, but one window at least."""

CHUNK_LOGITS = 1 << 23
"""Logits in memory at a time: 32 MiB, and twice that for their cumulative distribution."""


def collect(
    model: Model, tokens: np.ndarray, window_weights: np.ndarray, *, directory: Path, seed: int = 0,
    threads: int = 0, progress: Progress = SILENT,
) -> Statistics:  # fmt: skip
    """Run a model forward and backward over windows of tokens and sum up what every matrix sees.

    One layer's weights and sums are in memory at a time. A finished layer is not measured again by another call with
    the same inputs. Until all are finished, `directory` also holds every layer's hidden states:
    (layers + 2) * windows * tokens * width * 4 bytes.

    Args:
        model: A model that `Decoder` can run.
        tokens: Token ids, int32 [windows, tokens].
        window_weights: How much each window counts, float64 [windows], not negative.
        directory: Where the statistics go; made if absent. `labels.npy` there holds the labels drawn.
        seed: Seed of the labels.
        threads: Threads; 0 for one per core. Their number does not change a bit.
        progress: Told of layers.

    Raises:
        UnsupportedFormatError: The model cannot be run here.
        ValueRangeError: Arrays that do not fit, or a directory of other inputs.
        KvantError: The disk is full.
    """
    _check(tokens, window_weights)
    decoder = Decoder(model, threads=threads)
    directory.mkdir(parents=True, exist_ok=True)
    _claim(directory, _digest(model, tokens, window_weights, seed))
    run = _Run(decoder, tokens, window_weights, directory, seed)
    waiting = [layer for layer in range(decoder.n_layers + 1) if not run.finished(layer)]
    if waiting:
        run.forward(progress)
        run.backward(waiting, progress)
    for path in [*directory.glob("hidden-*.npy"), *directory.glob("gradient-*.npy")]:
        path.unlink()
    groups = {name: group[0] for layer in range(decoder.n_layers + 1) for group in run.groups(layer) for name in group}
    return Statistics(
        directory=directory, way="gradients", groups=groups, lookups={EMBEDDING: FIRST_LAYER},
        n_windows=tokens.shape[0], n_tokens=tokens.shape[1],
        sha256=digest_of(directory, is_new=bool(waiting)),
    )  # fmt: skip


class _Run:
    """One collection: states at boundary b are the input of layer b; the head is layer `n_layers`."""

    def __init__(
        self, decoder: Decoder, tokens: np.ndarray, window_weights: np.ndarray, directory: Path, seed: int
    ) -> None:
        self.decoder, self.tokens, self.directory, self.seed = decoder, tokens, directory, seed
        weights = window_weights / (window_weights.sum() * tokens.shape[1])
        self.weights = torch.from_numpy(np.repeat(weights[:, None], tokens.shape[1], axis=1).astype(np.float32))
        self.shape = (*tokens.shape, decoder.width)
        step = max(1, BATCH_TOKENS // tokens.shape[1])
        self.batches = [slice(at, at + step) for at in range(0, len(tokens), step)]

    def groups(self, layer: int) -> list[tuple[str, ...]]:
        """Return the linears of a layer, those that share an input together."""
        if layer == self.decoder.n_layers:
            return [self.decoder.names(layer)]
        return [tuple(f"blk.{layer}.{name}.weight" for name in group) for group in GROUPS]

    def finished(self, layer: int) -> bool:
        """Say whether all files of a layer are there."""
        if layer == 0 and not file_of(self.directory, FIRST_LAYER, "lookup").exists():
            return False
        return written(self.directory, self.decoder.names(layer), [group[0] for group in self.groups(layer)])

    def forward(self, progress: Progress) -> None:
        """Write the hidden states of all boundaries that have none yet."""
        progress.start("forward", self.decoder.n_layers + 1, "layers")
        for boundary in range(self.decoder.n_layers + 1):
            if not self._path("hidden", boundary).exists():
                self._write("hidden", boundary, self._layer_forward(boundary))
            progress.advance("forward", 1)
        progress.finish("forward")

    def backward(self, waiting: list[int], progress: Progress) -> None:
        """Measure the layers that wait, from the nearest gradient above them that a former run has left."""
        last = self.decoder.n_layers
        left = [b for b in range(max(waiting) + 1, last + 1) if self._path("gradient", b).exists()]
        layers = range(left[0] - 1 if left else last, waiting[0] - 1, -1)
        progress.start("backward", len(layers), "layers")
        for layer in layers:
            sums = Sums(self.decoder.threads) if layer in waiting else None
            if layer == last:
                labels = np.empty(self.tokens.shape, np.int32)
                self._write("gradient", last, self._head_backward(sums, labels))
                with atomic_write(self.directory / LABELS, is_shared=True) as file:
                    np.save(file, labels)
            else:
                self._write("gradient", layer, self._layer_backward(layer, sums))
            if sums is not None:
                sums.write(self.directory)
            if layer == 0:
                self._write_lookup()
            if layer < last:
                self._path("gradient", layer + 1).unlink()
            progress.advance("backward", 1)
        progress.finish("backward")

    def _write_lookup(self) -> None:
        """Measure the token embedding's look-up role, from the gradients at the first hidden state."""
        gradient, total = self._read("gradient", 0), np.zeros((self.decoder.width, self.decoder.width), np.float32)
        for rows in self.batches:
            x = _tensor(gradient[rows]).flatten(0, 1)
            add_outer(total, x, self.weights[rows].flatten(), threads=self.decoder.threads)
        save(file_of(self.directory, FIRST_LAYER, "lookup"), total)

    def _layer_forward(self, boundary: int) -> Iterator[np.ndarray]:
        if boundary == 0:
            yield from (self.decoder.embed(self.tokens[rows]).numpy() for rows in self.batches)
            return
        weights, hidden = self.decoder.weights(boundary - 1), self._read("hidden", boundary - 1)
        for rows in self.batches:
            with torch.no_grad():
                yield self.decoder.steps(boundary - 1, _tensor(hidden[rows]), weights).numpy()

    def _layer_backward(self, layer: int, sums: Sums | None) -> Iterator[np.ndarray]:
        """Yield the gradients at a layer's input, from those at its output."""
        weights = self.decoder.weights(layer)
        hidden, gradient = self._read("hidden", layer), self._read("gradient", layer + 1)
        for rows in self.batches:
            x = _tensor(hidden[rows]).requires_grad_()
            if sums is None:
                y = self.decoder.steps(layer, x, weights)
            else:
                sums.weights = self.weights[rows].flatten()
                y = self.decoder.steps(layer, x, weights, sums.observe, sums.on_output)
            yield torch.autograd.grad(y, x, _tensor(gradient[rows]))[0].numpy()

    def _head_backward(self, sums: Sums | None, labels: np.ndarray) -> Iterator[np.ndarray]:
        """Draw labels, window by window, and yield the gradients of -log p(label) at the last hidden state."""
        name, weights = self.decoder.head_name, self.decoder.weights(self.decoder.n_layers)
        hidden, threads = self._read("hidden", self.decoder.n_layers), self.decoder.threads
        step = max(1, CHUNK_LOGITS // len(weights[name]))
        for window in range(len(self.tokens)):
            draws = torch.from_numpy(np.random.default_rng([self.seed, window]).random(self.tokens.shape[1]))
            found = np.empty((1, *self.shape[1:]), np.float32)
            for at in range(0, self.tokens.shape[1], step):
                part = slice(at, at + step)
                h = _tensor(hidden[window, part]).requires_grad_()
                x = self.decoder.final_norm(h, weights)
                g = self.decoder.linear(x.detach(), weights[name])
                rowwise.softmax(g.numpy(), threads=threads)
                drawn = draw(g, draws[part])
                g[torch.arange(len(g)), drawn] -= 1
                if sums is not None:
                    sums.weights = self.weights[window, part]
                    sums.observe((name,), x)
                    sums.gradient(name, g)
                back = torch.from_numpy(linalg.matmul(g.numpy(), weights[name].numpy(), threads=threads))
                found[0, part] = torch.autograd.grad(x, h, back)[0].numpy()
                labels[window, part] = drawn.numpy()
            yield found

    def _path(self, kind: str, boundary: int) -> Path:
        return self.directory / f"{kind}-{boundary}.npy"

    def _read(self, kind: str, boundary: int) -> np.ndarray:
        return np.asarray(np.load(self._path(kind, boundary), mmap_mode="r"))

    def _write(self, kind: str, boundary: int, parts: Iterable[np.ndarray]) -> None:
        """Write float32 states [windows, tokens, width] part by part; not mapped, so that a full disk is an error."""
        with atomic_write(self._path(kind, boundary), is_shared=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part).data)


def draw(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one column of each row by inverse cumulative distribution.

    Args:
        p: Probabilities, float32 [rows, n].
        uniform: Draws from [0, 1), float64 [rows].

    Returns:
        Columns, int64 [rows].
    """
    cumulative = p.cumsum(-1, dtype=torch.float64)
    target = uniform * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp_(max=p.shape[1] - 1)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def _check(tokens: np.ndarray, window_weights: np.ndarray) -> None:
    if tokens.ndim != 2 or tokens.dtype != np.int32 or not tokens.size:
        raise ValueRangeError(
            f"tokens: {tokens.dtype} {list(tokens.shape)} is not int32 [windows, tokens]. Convert it."
        )
    good = window_weights.shape == tokens.shape[:1] and window_weights.dtype == np.float64
    if not good or not np.isfinite(window_weights).all() or window_weights.min() < 0 or window_weights.sum() <= 0:
        raise ValueRangeError(
            f"window_weights: {window_weights.dtype} {list(window_weights.shape)} is not float64 [{len(tokens)}] of "
            "finite numbers >= 0 that are not all 0. Give each window its share."
        )


def _digest(model: Model, tokens: np.ndarray, window_weights: np.ndarray, seed: int) -> str:
    """SHA-256 of the inputs; of a model's tensors the first and last rows."""
    prefix = f"{model.architecture}."
    hyper = {key: value.value for key, value in model.metadata.items() if key.startswith(prefix)}
    digest = hashlib.sha256(repr((hyper, tokens.shape, seed)).encode())
    digest.update(tokens.tobytes() + window_weights.tobytes())
    for name, tensor in sorted(model.tensors.items()):
        digest.update(repr((name, tensor.shape, tensor.block_type.name)).encode())
        for row in (0, n_rows(tensor) - 1):
            digest.update(np.ascontiguousarray(tensor.read_bytes(row, row + 1)).tobytes())
    return digest.hexdigest()


def _claim(directory: Path, digest: str) -> None:
    """Write down whose statistics a directory holds, or check it."""
    path = directory / "inputs.sha256"
    if path.exists() and path.read_text() != digest:
        raise ValueRangeError(
            f"{directory}: holds statistics of another model, text or seed. Remove it or choose another directory."
        )
    with atomic_write(path, is_shared=True) as file:
        file.write(digest.encode())
