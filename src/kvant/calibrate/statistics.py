"""What was measured of a model's matrices on calibration tokens, whoever measured it: read from files, on demand.

An error E [rows, n] in a matrix changes the distribution that the model predicts. To second order its Kullback-Leibler
divergence is a quadratic form, which is approximated by one n × n matrix Q for all rows:

    KLD per token ≈ 0.5 * trace(E Q Eᵀ) / rows

    by gradients (gradients.py)   Q = c A, A the second moment of inputs weighted by their gradients, c its strength
    by the engine (engine.py)     Q = c H, H the plain second moment E[x xᵀ], c from what errors in that matrix did

Of a matrix whose rows are looked up, Q is the second moment M of the gradients there, or c times the identity. One that
is multiplied with as well does both harms.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kvant.files import atomic_write, sha256_file
from kvant.quant.importance import Entry, Importance
from kvant.quant.roles import layer_of

LABELS = "labels.npy"
"""Labels drawn from the model's predictions, which gradients are taken of."""

BORROWED = 64
"""Tokens of the mean over all experts that each one's second moment has on top of its own."""


EXPERT_STACK = re.compile(r"blk\.\d+\.ffn_\w+_(?:ch)?exps\.weight")
"""Stacks of which a router chooses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Statistics of a model's matrices, read from their files on demand.

    Attributes:
        directory: Where the files are.
        way: What measured them; only gradients give the same bytes on every machine.
        groups: For every matrix that is multiplied with, the one under whose name their common second moment is stored.
        lookups: For every matrix whose rows are looked up, the name under which what that costs is stored.
        n_windows: Windows that were run.
        n_tokens: Tokens per window.
        sha256: Digest of all statistics' bytes.
    """

    directory: Path
    way: Literal["gradients", "engine"]
    groups: Mapping[str, str]
    lookups: Mapping[str, str]
    n_windows: int
    n_tokens: int
    sha256: str

    def hessian(self, name: str) -> np.ndarray:
        """Return the weighted mean of x xᵀ, float32 [n, n], x being a matrix's input; of a stack, of all its inputs."""
        return self._load(self.groups[name], "hessian")

    def expert(self, name: str, number: int) -> tuple[np.ndarray, int]:
        """Return the second moment of the inputs of one matrix of a stack, and how many tokens it rests on.

        An expert that few tokens came to borrows from the others: it has `BORROWED` tokens more, of the mean over all.

        Returns:
            Σ w x xᵀ, float32 [n, n], and the number of tokens with those borrowed.
        """
        leader = self.groups[name]
        counts = self._counts(leader)
        moments = np.load(file_of(self.directory, leader, "experts"), mmap_mode="r")
        shared = self.hessian(name) / np.float32(max(counts.sum(), 1.0))
        return moments[number] + np.float32(BORROWED) * shared, int(counts[number]) + BORROWED

    def fisher(self, name: str) -> np.ndarray:
        """Return A, float32 [n, n]: the mean of x xᵀ weighted by ‖g‖²; H where no gradients were taken."""
        return self._load(name, "fisher") if self.way == "gradients" else self.hessian(name)

    def expert_tokens(self) -> dict[str, np.ndarray]:
        """Return how many tokens came to each expert, float64 [experts], by the first stack of every layer's.

        Other stacks of the layer saw the same; matrices of attention heads are no experts.
        """
        found: dict[int | None, str] = {}
        for name in dict.fromkeys(self.groups.values()):
            if EXPERT_STACK.fullmatch(name) and file_of(self.directory, name, "experts").exists():
                found.setdefault(layer_of(name), name)
        return {name: self._counts(name) for name in found.values()}

    def _counts(self, leader: str) -> np.ndarray:
        with np.load(squares_of(self.directory, leader)) as found:
            return np.asarray(found["counts"])

    def curvature(self, name: str) -> float:
        """Return c, nats per token: predicted KLD of an error E [rows, n] is 0.5 * c * trace(E A Eᵀ) / rows.

        Where no gradients were taken, A is the plain second moment.
        """
        return float(self._load(name, "curvature"))

    def lookup(self, name: str) -> np.ndarray:
        """Return M, float32 [n, n], the mean of g gᵀ where a matrix's rows enter; or, float32 [n], a diagonal one."""
        return self._load(self.lookups[name], "lookup")

    def risk(self, name: str) -> np.ndarray:
        """Return Q, float32 [n, n]: predicted KLD of an error E [rows, n] is as the module says."""
        roles = []
        if name in self.groups:
            roles.append(np.float32(self.curvature(name)) * self.fisher(name))
        if name in self.lookups:
            roles.append(_matrix(self.lookup(name)))
        return np.asarray(sum(roles[1:], start=roles[0]))

    def moments(self, name: str) -> tuple[np.ndarray, ...]:
        """Return all second moments, float32 [n, n], that say how errors in a matrix's columns act together."""
        found = [self.hessian(name)] if name in self.groups else []
        if name in self.groups and self.way == "gradients":
            found.append(self.fisher(name))
        if name in self.lookups and (self.way == "gradients" or not found):
            found.append(_matrix(self.lookup(name)))
        return tuple(found)

    @property
    def names(self) -> tuple[str, ...]:
        """Matrices that were measured, those looked up first."""
        return tuple(dict.fromkeys((*self.lookups, *self.groups)))

    def importance(self, datasets: tuple[str, ...] = ()) -> Importance:
        """Return the importance matrix of all tensors inside the layers, as llama.cpp measures it: sums of x²."""
        entries = {name: self._entry(name) for name in self.groups if name.startswith("blk.")}
        return Importance(entries=entries, datasets=datasets, n_chunks=self.n_windows, chunk_size=self.n_tokens)

    def _entry(self, name: str) -> Entry:
        if self.way == "engine":
            with np.load(squares_of(self.directory, self.groups[name])) as found:
                return Entry(sums=found["sums"].astype(np.float32), counts=found["counts"].astype(np.float32))
        count = np.array([self.n_windows * self.n_tokens], np.float32)
        # Copied: a view would keep every matrix in memory.
        return Entry(sums=self.hessian(name).diagonal().copy()[None] * count[:, None], counts=count)

    def _load(self, name: str, kind: str) -> np.ndarray:
        """Map a file: second moments are large, and read once."""
        return np.asarray(np.load(file_of(self.directory, name, kind), mmap_mode="r"))


def file_of(directory: Path, name: str, kind: str) -> Path:
    """Return where one statistic of a tensor is stored; `hessian` under the first tensor that shares the input."""
    return directory / f"{name}.{kind}.npy"


DIGEST = "statistics.sha256"
"""Written last."""


def squares_of(directory: Path, name: str) -> Path:
    """Return where sums of x² and the number of x are stored that the engine gave: under a group's first tensor."""
    return directory / f"{name}.squares.npz"


def save(path: Path, values: np.ndarray | np.float64) -> None:
    """Write one statistic; the file appears whole."""
    with atomic_write(path, is_shared=True) as file:
        np.save(file, values)


def is_whole(directory: Path) -> bool:
    """Whether a directory holds statistics that were measured to their end."""
    return (directory / DIGEST).exists()


def digest_of(directory: Path, *, is_new: bool) -> str:
    """Return the SHA-256 over all statistics and labels in a directory; kept there, made again if they are new."""
    kept = directory / DIGEST
    if is_new or not kept.exists():
        with atomic_write(kept, is_shared=True) as file:
            file.write(digest_now(directory).encode())
    return kept.read_text()


def digest_now(directory: Path) -> str:
    """Return the SHA-256 over all statistics and labels in a directory, of their bytes as they are."""
    digest = hashlib.sha256()
    for path in sorted([*directory.glob("*.*.np[yz]"), *directory.glob(LABELS)]):
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _matrix(moment: np.ndarray) -> np.ndarray:
    return np.diag(moment) if moment.ndim == 1 else moment
