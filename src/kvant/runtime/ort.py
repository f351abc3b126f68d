"""ONNX Runtime in this process: a decoder of onnxruntime-genai's layout, run token by token or as a whole.

Only onnxruntime is needed; onnxruntime-genai, which such directories are made for, is not.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvant.errors import EngineError, UnsupportedModelError
from kvant.formats.onnx.decoder import SPINNING, Sizes, read_decoder

if TYPE_CHECKING:
    import onnxruntime

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_DTYPES = {
    "tensor(float)": "<f4", "tensor(float16)": "<f2", "tensor(double)": "<f8", "tensor(int64)": "<i8",
    "tensor(int32)": "<i4", "tensor(int16)": "<i2", "tensor(int8)": "|i1", "tensor(uint8)": "|u1",
    "tensor(uint16)": "<u2", "tensor(uint32)": "<u4", "tensor(uint64)": "<u8", "tensor(bool)": "|b1",
}  # fmt: skip


def open_session(path: Path, *, n_threads: int, spinning: bool | None = None) -> "onnxruntime.InferenceSession":
    """Load a checked model on the processor; idle threads wait by spinning if they are told to, or nothing is said.

    Raises:
        EngineError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4
    if spinning is not None:
        options.add_session_config_entry(SPINNING, str(int(spinning)))
    return guarded(path, lambda: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))


def guarded(path: Path | str, call: Callable[[], Any]) -> Any:
    """Call ONNX Runtime or a tool of it and turn whatever it raises into an EngineError about `path`."""
    try:
        return call()
    except MemoryError:
        raise
    except Exception as error:  # its exceptions have no common class of their own
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise EngineError(f"{path}: ONNX Runtime refuses it ({first[0][:300]}). Check the model.") from error


def dtype_of(kind: str) -> str:
    """Return the NumPy dtype of a type as ONNX Runtime writes it; empty if it is no tensor of numbers."""
    return _DTYPES.get(kind, "")


class OrtDecoder:
    """A directory of onnxruntime-genai, open.

    Args:
        path: The directory.
        n_threads: Threads.
        spinning: Whether idle threads spin; None for what the directory says.

    Attributes:
        n_vocab: Tokens in the vocabulary.
        load_s: Seconds it took to load.

    Raises:
        EngineError: ONNX Runtime cannot load it.
        UnsupportedModelError: It has inputs that are not known here.
    """

    def __init__(self, path: Path, *, n_threads: int, spinning: bool | None = None) -> None:
        started = time.perf_counter()
        self.layout = read_decoder(path)
        spins = self.layout.spinning if spinning is None else spinning
        self.session = open_session(self.layout.file, n_threads=n_threads, spinning=spins)
        self.load_s = time.perf_counter() - started
        self.sizes: Sizes = self.layout.sizes
        self.n_vocab = self.layout.n_vocab
        self._names = [output.name for output in self.session.get_outputs()]
        self._past = {}
        for port in self.session.get_inputs():
            if port.name in ("input_ids", "attention_mask", "position_ids"):
                continue
            if not re.fullmatch(r"past_key_values\.\d+\.(key|value)", port.name) or port.type not in FLOATS:
                raise UnsupportedModelError(
                    f"{path}: input {port.name[:80]!r} is none that kvant can fill. Use a plain decoder with a "
                    "key-value cache of floats."
                )
            shape = (1, self.layout.n_kv_heads, 0, self.layout.head_size)
            self._past[port.name] = np.zeros(shape, FLOATS[port.type])
        self._inputs = [port.name for port in self.session.get_inputs()]
        self._state: dict[str, np.ndarray] = {}
        self._position, self._next = 0, 0

    def logits(self, tokens: np.ndarray, *, first: int) -> np.ndarray:
        """Run tokens from an empty cache; return logits from position `first` on, float32 [n - first, n_vocab]."""
        feeds = self._feeds(tokens, 0, self._past)
        (found,) = guarded(self.layout.file, lambda: self.session.run([self.layout.logits], feeds))
        rows: np.ndarray = found[0, first:].astype(np.float32, copy=False)
        if rows.shape != (len(tokens) - first, self.n_vocab):
            raise EngineError(
                f"{self.layout.file}: gives logits {list(found.shape)} for {len(tokens)} tokens of a vocabulary of "
                f"{self.n_vocab}. Export it without prune_lm_head."
            )
        return rows

    def time_prompt(self, tokens: np.ndarray) -> float:
        """Read a prompt into an empty cache and return the seconds."""
        self._state, self._position = self._past, 0
        return self._step(tokens)

    def time_steps(self, n: int) -> float:
        """Continue greedily by `n` tokens and return the seconds."""
        return sum(self._step(np.array([self._next], np.int32)) for _ in range(n))

    def _step(self, tokens: np.ndarray) -> float:
        feeds = self._feeds(tokens, self._position, self._state)
        started = time.perf_counter()
        outputs = dict(zip(self._names, guarded(self.layout.file, lambda: self.session.run(None, feeds)), strict=True))
        seconds = time.perf_counter() - started
        self._next = int(outputs[self.layout.logits][0, -1].argmax())
        self._position += len(tokens)
        self._state = {name: outputs[name.replace("past_key_values", "present")] for name in self._past}
        return seconds

    def _feeds(self, tokens: np.ndarray, position: int, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        n = len(tokens)
        made = {
            "input_ids": tokens.astype(np.int64)[None],
            "attention_mask": np.ones((1, position + n), np.int64),
            "position_ids": np.arange(position, position + n, dtype=np.int64)[None],
        }
        return {name: made[name] if name in made else past[name] for name in self._inputs}
