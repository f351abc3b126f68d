"""What measuring a model in the engine will take, timed on a few tokens: seconds, memory, disk."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.calibrate.parts import Part, leaders_of, open_watched, passes, take_part
from kvant.calibrate.probes import pieces_of
from kvant.kernels import linalg
from kvant.model import Model
from kvant.runtime.process import EngineProcess

TIMED_TOKENS = 128
TIMED_COLUMNS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What takes part in a model, and how fast this machine is at it.

    Attributes:
        parts: Matrices that take part.
        token_s: Seconds per token of the full-precision model, with its predictions.
        products_s: Products of two numbers per second in sums of second moments.
        window_tokens: Tokens of a window.
    """

    parts: tuple[Part, ...]
    token_s: float
    products_s: float
    window_tokens: int

    def n_passes(self, ram_bytes: int) -> int:
        """How often the text is run for sums that take so much memory at a time."""
        return len(list(passes(leaders_of(self.parts), ram_bytes)))

    def statistics_s(self, windows: int, ram_bytes: int) -> float:
        """Seconds that second moments take over so many windows."""
        leaders = leaders_of(self.parts)
        products = sum(part.columns**2 / 2 for part in leaders)
        tokens = windows * self.window_tokens
        return tokens * (self.n_passes(ram_bytes) * self.token_s + products / self.products_s)

    def probes_s(self, windows: int) -> float:
        """Seconds that trying an error in every matrix takes."""
        pieces = pieces_of(np.zeros((windows, self.window_tokens), np.int32), [""] * windows, len(self.parts))
        return sum(map(len, pieces)) * (len(self.parts) + 1) * self.token_s

    @property
    def largest_bytes(self) -> int:
        """Bytes of one matrix's sums, which are in memory at once."""
        return max(part.moment_bytes for part in leaders_of(self.parts))

    @property
    def disk_bytes(self) -> int:
        """Bytes of the second moments that are kept."""
        return sum(part.moment_bytes for part in leaders_of(self.parts))


def survey(base: Path, model: Model, tokens: np.ndarray, *, threads: int) -> Survey:
    """Look at a model in the engine, and time some tokens.

    Args:
        base: GGUF of the model that the engine runs.
        model: The same model.
        tokens: Token ids of a window, int32 [n].
        threads: Threads of the engine and of the sums.

    Raises:
        EngineError: The engine cannot run the file, or shows it otherwise than is known.
        UnsupportedModelError: It multiplies with no matrix of the model.
    """
    with EngineProcess() as engine:
        open_watched(engine, base, n_ctx=len(tokens), threads=threads)
        parts = take_part(engine, model, tokens)
        few = tokens[:TIMED_TOKENS]
        seconds = min(_seconds(engine, few) for _ in range(2))  # the first one also reads the weights
    return Survey(
        parts=tuple(parts), token_s=seconds / len(few), products_s=_products_per_second(parts, threads),
        window_tokens=len(tokens),
    )  # fmt: skip


def _seconds(engine: EngineProcess, tokens: np.ndarray) -> float:
    start = time.perf_counter()
    engine.listen(tokens)
    return time.perf_counter() - start


def _products_per_second(parts: Sequence[Part], threads: int) -> float:
    columns = min(TIMED_COLUMNS, max(part.columns for part in parts))
    x = np.ones((2 * linalg.PANEL, columns), np.float32)
    linalg.gram(x[: linalg.PANEL], threads=threads)
    start = time.perf_counter()
    linalg.gram(x, threads=threads)
    return len(x) * columns**2 / 2 / (time.perf_counter() - start)
