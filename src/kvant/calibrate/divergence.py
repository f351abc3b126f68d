"""KL divergence of a student from its teacher on windows of tokens, and its gradients, layer by layer.

One layer's weights are in memory at a time; a layer runs again on the way back. The gradient at the student's logits
is q - p, its probabilities less the teacher's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kvant.calibrate.decoder import EMBEDDING, Decoder
from kvant.calibrate.student import Changes, Student
from kvant.kernels import linalg, rowwise
from kvant.model import Model
from kvant.progress import SILENT, Progress

BATCH_WINDOWS = 4
"""Windows that go through a layer at a time."""

CHUNK_LOGITS = 1 << 23
"""Logits in memory at a time, of the teacher and of the student each: 32 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """What the full-precision model says of windows of tokens.

    Attributes:
        decoder: Runs it.
        tokens: Token ids, int32 [windows, tokens].
        hidden: Its states after the last layer, float32 [windows, tokens, width].
        head: Its last norm and output head.
    """

    decoder: Decoder
    tokens: np.ndarray
    hidden: np.ndarray
    head: Mapping[str, torch.Tensor]

    def probabilities(self, window: int, part: slice) -> np.ndarray:
        """Return its predictions at some positions of a window, float32 [positions, n_vocab]."""
        return _probabilities(self.decoder, torch.from_numpy(self.hidden[window, part]), self.head)


def teach(model: Model, tokens: np.ndarray, *, threads: int = 0, progress: Progress = SILENT) -> Teacher:
    """Run the full-precision model over all windows, int32 [windows, tokens]."""
    decoder = Decoder(model, threads=threads)
    hidden = decoder.embed(tokens).numpy()
    progress.start("teacher", decoder.n_layers, "layers")
    for layer in range(decoder.n_layers):
        weights = decoder.weights(layer)
        for rows in _batches(len(tokens)):
            with torch.no_grad():
                hidden[rows] = decoder.steps(layer, torch.from_numpy(hidden[rows]), weights).numpy()
        progress.advance("teacher", 1)
    progress.finish("teacher")
    return Teacher(decoder=decoder, tokens=tokens, hidden=hidden, head=decoder.weights(decoder.n_layers))


def divergences(student: Student, teacher: Teacher, windows: Sequence[int]) -> np.ndarray:
    """Return the mean KL divergence of each of some windows, float64 [windows], in nats per token."""
    (last,) = _forward(student, teacher.tokens[list(windows)], keep=False)
    decoder, means = student.decoder, []
    head = student.weights(decoder.n_layers)
    for window, state in zip(windows, last, strict=True):
        total = 0.0
        for part in _parts(teacher):
            q = _probabilities(decoder, torch.from_numpy(state[part]), head)
            total += _divergence(teacher.probabilities(window, part), q)
        means.append(total / len(state))
    return np.array(means)


def gradients(student: Student, teacher: Teacher, windows: Sequence[int]) -> tuple[Changes, float]:
    """Return the gradient of the mean KL divergence of some windows at every change, and that mean, nats per token."""
    decoder, tokens = student.decoder, teacher.tokens[list(windows)]
    states = _forward(student, tokens, keep=True)
    found, gradient, mean = _head_gradients(student, teacher, windows, states.pop())
    table = found.pop(EMBEDDING, None)
    changes = {key: value for name, g in found.items() for key, value in student.pull(name, g).items()}
    for layer in reversed(range(decoder.n_layers)):
        weights = {name: w.requires_grad_() for name, w in student.weights(layer).items()}
        state = states.pop()
        for rows in _batches(len(tokens)):
            x = torch.from_numpy(state[rows]).requires_grad_()
            decoder.steps(layer, x, weights).backward(torch.from_numpy(gradient[rows]))  # type: ignore[no-untyped-call]
            assert x.grad is not None
            gradient[rows] = x.grad.numpy()
        for name, weight in weights.items():
            if weight.grad is not None:
                changes.update(student.pull(name, weight.grad.numpy()))
    if table is None:
        table = np.zeros(student.model.tensors[EMBEDDING].shape, np.float32)
    np.add.at(table, tokens.reshape(-1), gradient.reshape(-1, decoder.width))
    changes.update(student.pull(EMBEDDING, table))
    return changes, mean


def _batches(count: int) -> list[slice]:
    return [slice(at, at + BATCH_WINDOWS) for at in range(0, count, BATCH_WINDOWS)]


def _forward(student: Student, tokens: np.ndarray, *, keep: bool) -> list[np.ndarray]:
    """Return the states at every boundary of layers, float32 [windows, tokens, width], or only the last ones."""
    decoder = student.decoder
    states = [student.weight(EMBEDDING)[tokens]]
    for layer in range(decoder.n_layers):
        weights, before = student.weights(layer), states[-1]
        after = np.empty_like(before) if keep else before
        for rows in _batches(len(tokens)):
            with torch.no_grad():
                after[rows] = decoder.steps(layer, torch.from_numpy(before[rows]), weights).numpy()
        if keep:
            states.append(after)
    return states


def _head_gradients(
    student: Student, teacher: Teacher, windows: Sequence[int], last: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Return gradients at the last norm and the head by name, those at the last states, and the mean divergence."""
    decoder, threads = student.decoder, student.threads
    weights = student.weights(decoder.n_layers)
    norm, head = weights["output_norm.weight"].requires_grad_(), weights[decoder.head_name].numpy()
    at_head, gradient, total = np.zeros_like(head), np.empty_like(last), 0.0
    share = np.float32(1 / (last.shape[0] * last.shape[1]))
    for index, window in enumerate(windows):
        for part in _parts(teacher):
            h = torch.from_numpy(last[index, part]).requires_grad_()
            x = decoder.final_norm(h, weights)
            rows = x.detach().numpy()
            p, q = teacher.probabilities(window, part), rowwise.softmax(linalg.matmul_nt(rows, head, threads=threads))
            total += _divergence(p, q)
            g = (q - p) * share
            at_head += linalg.matmul_tn(g, rows, threads=threads)
            x.backward(torch.from_numpy(linalg.matmul(g, head, threads=threads)))  # type: ignore[no-untyped-call]
            assert h.grad is not None
            gradient[index, part] = h.grad.numpy()
    assert norm.grad is not None
    found = {"output_norm.weight": norm.grad.numpy(), decoder.head_name: at_head}
    return found, gradient, total * float(share)


def _parts(teacher: Teacher) -> list[slice]:
    """Positions of a window that are worked on at a time."""
    step = max(1, CHUNK_LOGITS // len(teacher.head[teacher.decoder.head_name]))
    return [slice(at, at + step) for at in range(0, teacher.tokens.shape[1], step)]


def _probabilities(decoder: Decoder, hidden: torch.Tensor, head: Mapping[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        return rowwise.softmax(decoder.head(hidden, head).numpy(), threads=decoder.threads)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Sum of p ln(p / q), nats; predictions below the smallest float32 count as that."""
    least = np.finfo(np.float32).tiny
    return float(np.sum(p * np.log(np.maximum(p, least) / np.maximum(q, least)), dtype=np.float64))
