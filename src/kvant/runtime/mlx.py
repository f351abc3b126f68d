"""MLX in a process of its own, seen from its owner: what `evaluate` asks of an engine.

mlx-lm runs in the environment that `KVANT_MLX_PYTHON` names, or in kvant's own.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from kvant.documents import JSON_ERRORS
from kvant.errors import EngineError, MissingDependencyError
from kvant.runtime import messages
from kvant.runtime.child import Child
from kvant.runtime.owner import Owner
from kvant.runtime.sandbox import spawn

PYTHON = "KVANT_MLX_PYTHON"
ENVIRONMENT: dict[str, str] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
MAX_ANSWER_BYTES = 1 << 20
AnswerT = TypeVar("AnswerT")


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What mlx-lm says of a model it has loaded.

    Attributes:
        n_vocab: Tokens that it gives logits of.
        n_params: Weights.
        tensor_bytes: Bytes of all tensors as stored.
        load_s: Seconds to load it.
    """

    n_vocab: int
    n_params: int
    tensor_bytes: int
    load_s: float


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of logits it wrote."""

    rows: int


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """What it measured; see `messages.Measured`."""

    pp_tok_s: float
    tg_tok_s: float
    fastest_s: float
    rss_bytes: int
    rss_before_bytes: int


class MLXProcess(Owner[Loaded]):
    """mlx-lm in a child process; use it as a context manager. Leaving it kills the child.

    Args:
        timeout_s: Seconds that one request may take.
    """

    def __init__(self, *, timeout_s: float = 900.0) -> None:
        super().__init__(timeout_s)
        self._root: Path | None = None

    def open(
        self, path: Path, *, n_ctx: int = 0, n_threads: int = 0, all_logits: bool = False,  # noqa: ARG002
        spinning: bool | None = None,  # noqa: ARG002
    ) -> Loaded:  # fmt: skip
        """Load a model in place of the one that was open; MLX sizes contexts and chooses threads itself.

        Raises:
            EngineError: mlx-lm cannot load it.
            MissingDependencyError: There is no mlx-lm.
        """
        self._start(path)
        self.opened = self._ask({"do": "open", "path": str(path)}, Loaded)
        return self.opened

    def logits(self, windows: Iterable[np.ndarray], *, first: int) -> Iterator[np.ndarray]:
        """Run windows one after the other.

        Args:
            windows: Token ids, int32 [n] each.
            first: Position of the first logits wanted of each.

        Yields:
            Logits, float32 [n - first, n_vocab].
        """
        assert self.opened is not None, "open comes first"
        n_vocab = self.opened.n_vocab
        for window in windows:
            self._shared.reserve((len(window) - first) * n_vocab * 4)
            rows = self._ask({"do": "logits", "ids": window.tolist(), "first": first}, Rows).rows
            yield self._shared.rows(rows, n_vocab).copy()

    def speed(self, *, n_prompt: int, n_generate: int, repeats: int) -> messages.Measured:
        """Measure tokens per second, in float32, and peak memory of the open model."""
        asked = {"n_prompt": n_prompt, "n_generate": n_generate, "repeats": repeats}
        found = msgspec.structs.asdict(self._ask({"do": "speed", **asked}, Timed))
        return messages.Measured(
            **found, **asked, n_threads=0, energy_j_per_token=None, energy_reason="not measured under MLX"
        )

    def _start(self, path: Path) -> None:
        """Have a child that may read a model and nothing else."""
        self.path = str(path)
        if self._child is not None and self._child.lives and path == self._root:
            return
        self._end()
        python = os.environ.get(PYTHON) or sys.executable
        worker = Path(__file__).with_name("mlx_worker.py")
        shared = self._shared.fileno()
        try:
            self._child = Child(
                spawn.foreign(path), str(worker), str(shared), python=python, environment=ENVIRONMENT, shared=(shared,)
            )
        except OSError as error:
            raise MissingDependencyError(f"{PYTHON}: {python} cannot be run ({error}). Name a Python.") from error
        self._root = path

    def _ask(self, request: dict[str, Any], kind: type[AnswerT]) -> AnswerT:
        """Return the answer to a request, of the kind that it should be."""
        assert self._child is not None, "open comes first"
        try:
            self._child.send(json.dumps(request).encode() + b"\n", self._timeout_s)
            line = self._child.reader(self._timeout_s).rest(MAX_ANSWER_BYTES, line=True)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self._child.kill()  # or it would give this answer to the next request
            raise EngineError(
                f"{self.path}: mlx-lm gave no answer within {self._timeout_s:g} s. Try a smaller model or context."
            ) from None
        if line == b"":
            raise self._ended()
        try:
            answer = msgspec.json.decode(line or b"", type=dict[str, Any])
            if "error" not in answer:
                return msgspec.convert(answer, kind)
        except JSON_ERRORS as error:
            self._child.kill()
            raise EngineError(
                f"{self.path}: mlx-lm's process answers what is no answer ({error}). Check the model and its version."
            ) from None
        raise EngineError(f"{self.path}: mlx-lm fails on it ({answer['error']}). Check the model and its version.")

    def _ended(self) -> EngineError | MissingDependencyError:
        assert self._child is not None
        self._child.status()
        said = self._child.said()
        last = said[-1] if said else "it said nothing"
        if any("No module named 'mlx" in line for line in said):
            return MissingDependencyError(
                f"mlx-lm: is not installed, and MLX models run in it ({last}). Run: pip install 'kvant[mlx]', or set "
                f"{PYTHON} to the Python of an environment that has it."
            )
        return EngineError(f"{self.path}: the process of mlx-lm ended ({last[:300]}). Check the model and its version.")
