"""A model whose products are watched: sums of what its weights are multiplied with, and errors put on their results.

In the engine's process; `observer.py` is what the engine calls.
"""

from collections.abc import Callable

import numpy as np

from kvant.errors import EngineError
from kvant.runtime import capi, messages
from kvant.runtime.llamacpp import LlamaCpp
from kvant.runtime.observer import observer

OBSERVED = (
    messages.Listen, messages.SumUp, messages.Observe, messages.Moments, messages.Squares, messages.Probe
)  # fmt: skip
"""What is asked of it."""


class Observed:
    """The observer of one open model, and the sums it adds to.

    Args:
        n_threads: Threads of the sums; 0 for one per core.

    Attributes:
        observer: What the model is opened with.
    """

    def __init__(self, n_threads: int) -> None:
        self.observer = observer(n_threads)
        self._moments: dict[str, np.ndarray] = {}
        self._squares: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._truth = Truth(b"", np.empty((0, 0), np.float32))

    def answer(
        self, model: LlamaCpp, request: messages.Request, write: Callable[[np.ndarray, int], messages.Wrote]
    ) -> messages.Reply:
        """Do what is asked; rows of float32 are given back by `write`, at a byte of the shared memory."""
        if isinstance(request, messages.Listen):
            return self._listen(model, request.tokens)
        if isinstance(request, messages.SumUp):
            return self._sum_up(request.weights)
        if isinstance(request, messages.Observe):
            self.observer.weigh(np.frombuffer(request.weights, "<f4"))
            self._run(model, request.tokens)
            self.observer.finish()
            return messages.Noted()
        if isinstance(request, messages.Moments):
            return write(self._moments[request.name][request.slot], 0)
        if isinstance(request, messages.Squares):
            sums, counts = self._squares[request.name]
            return messages.SquareSums(sums.astype("<f8").tobytes(), counts.astype("<f8").tobytes())
        assert isinstance(request, messages.Probe)
        return self._probe(model, request)

    def _listen(self, model: LlamaCpp, tokens: bytes) -> messages.Heard:
        self.observer.listen(True)
        self._run(model, tokens)
        self.observer.listen(False)
        return messages.Heard([messages.Product(*product) for product in self.observer.seen()])

    def _sum_up(self, weights: list[messages.Sum]) -> messages.Noted:
        self.observer.forget()
        self._moments, self._squares = {}, {}
        for wanted in weights:
            n, stack = wanted.columns, wanted.stack
            moments = np.zeros((stack, n, n), np.float32) if wanted.moments else None
            squares, counts = np.zeros((stack, n)), np.zeros(stack)
            self.observer.add(wanted.name, moments, squares, counts, wanted.layer)
            self._squares[wanted.name] = (squares, counts)
            if moments is not None:
                self._moments[wanted.name] = moments
        return messages.Noted()

    def _probe(self, model: LlamaCpp, request: messages.Probe) -> messages.Answered:
        if self._truth.tokens != request.tokens:
            self._truth = Truth(request.tokens, self._run(model, request.tokens))
        for error in request.errors:
            scales = np.frombuffer(error.scales, "<f4").reshape(error.stack, -1)
            self.observer.disturb(error.name, error.role, scales, error.first_sign)
        try:
            divergence = self._truth.divergence(self._run(model, request.tokens))
        finally:
            energies = self.observer.calm()
        return messages.Answered(
            divergence.astype("<f4").tobytes(),
            [energies[error.name, error.role] / len(divergence) for error in request.errors],
        )

    def _run(self, model: LlamaCpp, tokens: bytes) -> np.ndarray:
        """Run a text; a graph that the observer stopped is no failure to the engine, so it is asked."""
        logits = model.logits(np.frombuffer(tokens, "<i4"))
        complaint = self.observer.complaint()
        if complaint:
            raise EngineError(
                f"{model.path}: {complaint}, so statistics cannot be taken from {capi.ENGINE}. Pass --calibrate none."
            )
        return logits


class Truth:
    """What a model predicts of a text, ready to be compared with.

    Args:
        tokens: The text, as it was asked for.
        logits: Its logits, float32 [tokens, n_vocab]; they are left alone.
    """

    def __init__(self, tokens: bytes, logits: np.ndarray) -> None:
        self.tokens = tokens
        self._logits, self._sums = logits.copy(), log_sums(logits)
        self._p = np.exp(logits - self._sums[:, None].astype(np.float32))

    def divergence(self, logits: np.ndarray) -> np.ndarray:
        """Return the KL divergence of other logits, float64 [tokens]: Σ p (x - y) - log Σ exp x + log Σ exp y.

        Of differences, since both logits are large beside it.
        """
        crossed = np.einsum("ij,ij->i", self._p, self._logits - logits)
        return np.asarray(crossed - self._sums + log_sums(logits))


def log_sums(logits: np.ndarray) -> np.ndarray:
    """Return log Σ exp of every row, float64 [rows]."""
    most = logits.max(1, keepdims=True, initial=-np.inf)
    return np.asarray(np.log(np.exp(logits - most).sum(1, dtype=np.float64)) + most[:, 0])
