"""Sums over tokens of what each linear of one layer sees: its inputs, and its inputs weighted by its gradients."""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kvant.calibrate.operators import squares
from kvant.calibrate.statistics import file_of, save
from kvant.kernels import linalg


class Sums:
    """What is accumulated for one layer; pass `observe` and `on_output` to `Decoder.steps`, then go backward.

    Attributes:
        weights: Weight of each token of the batch that comes next, float32 [tokens]; all weights together sum to 1.
        threads: Threads of the kernels; 0 for one per core.
    """

    def __init__(self, threads: int = 0) -> None:
        self.weights, self.threads = torch.empty(0), threads
        self._inputs: dict[str, torch.Tensor] = {}
        self._hessians: dict[str, np.ndarray] = {}
        self._fishers: dict[str, np.ndarray] = {}
        self._curvatures: dict[str, float] = {}
        self._groups: dict[str, str] = {}

    def observe(self, names: tuple[str, ...], x: torch.Tensor) -> None:
        """Add w x xᵀ to the group's second moment; x, float32 [..., n], is kept until the gradients are here."""
        x = x.detach().flatten(0, -2)
        self._add(self._hessians, names[0], x, self.weights)
        for name in names:
            self._inputs[name], self._groups[name] = x, names[0]

    def on_output(self, name: str, y: torch.Tensor) -> None:
        """Wait for the gradient at a linear's output."""
        y.register_hook(partial(self.gradient, name))  # type: ignore[no-untyped-call, unused-ignore]

    def gradient(self, name: str, g: torch.Tensor) -> None:
        """Add w ‖g‖² x xᵀ; g, float32 [..., rows], is the gradient at the linear's output."""
        strength = self.weights * squares(g.flatten(0, -2), threads=self.threads)
        self._add(self._fishers, name, self._inputs.pop(name), strength)
        self._curvatures[name] = self._curvatures.get(name, 0.0) + math.fsum(strength.tolist())

    def write(self, directory: Path) -> None:
        """Write every statistic of the layer; each file appears whole."""
        for name, total in self._hessians.items():
            save(file_of(directory, name, "hessian"), total)
        for name, group in self._groups.items():
            curvature = self._curvatures[name]
            # No gradient reached it (a matrix of zeros follows): its error is harmless in every direction alike.
            fisher = self._fishers[name] / curvature if curvature > 0 else self._hessians[group]
            save(file_of(directory, name, "fisher"), fisher)
            save(file_of(directory, name, "curvature"), np.float64(curvature))

    def _add(self, totals: dict[str, np.ndarray], name: str, x: torch.Tensor, weights: torch.Tensor) -> None:
        """Add Σ w x xᵀ to a tensor's total, which starts at 0."""
        if name not in totals:
            totals[name] = np.zeros((x.shape[1], x.shape[1]), np.float32)
        add_outer(totals[name], x, weights, threads=self.threads)


def written(directory: Path, names: Iterable[str], groups: Iterable[str]) -> bool:
    """Say whether a layer is finished: its files are all there."""
    files = [file_of(directory, name, kind) for name in names for kind in ("fisher", "curvature")]
    return all(path.exists() for path in [*files, *(file_of(directory, name, "hessian") for name in groups)])


def add_outer(total: np.ndarray, x: torch.Tensor, weights: torch.Tensor, *, threads: int = 0) -> None:
    """Add Σ w x xᵀ over the rows of x, float32 [tokens, n], to total, float32 [n, n], symmetric."""
    linalg.gram(x.numpy() * np.sqrt(weights.numpy())[:, None], out=total, threads=threads)
