"""Importance files, "imatrix": llama.cpp's old binary layout and its present one inside GGUF.

Old layout, little-endian: int32 entries; per entry int32 length, name, int32 calls, int32 values, float32 values (mean
of x² times calls); then, optionally, int32 chunks, int32 length, name of the text. Calls are chunks, rounded up. In
GGUF: two F32 tensors per entry, `<name>.in_sum2` and `<name>.counts`, and the keys `imatrix.datasets`, `.chunk_count`
and `.chunk_size`.

Source: llama.cpp b11434 `common/imatrix-loader.cpp`, `tools/imatrix`; parity in tests/unit/formats/test_imatrix.py.
"""

import mmap
import struct
from pathlib import Path

import numpy as np

from kvant.dtypes import F32
from kvant.errors import FormatError, KvantError, LimitError
from kvant.files import atomic_write
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.lookalikes import HEAD_BYTES, check_pointer
from kvant.metadata import Value, ValueType, array, string, u32
from kvant.model import Model
from kvant.quant.importance import Entry, Importance
from kvant.tensors import Tensor, array_tensor, n_rows

MAX_FILE_BYTES = 1 << 31
"""The largest model known, of 60 layers of 384 experts, needs 1.5 GB. Files are mapped, not read."""
MAX_ENTRIES = 1 << 17
MAX_COUNT = (1 << 31) - 1
"""Chunks, tokens per chunk and, in the old layout, calls: what 32 bits hold there."""

_AGAIN = "Measure the importance again."


def read_imatrix(path: Path) -> Importance:
    """Read an importance file of either layout.

    Raises:
        FormatError: It is truncated, damaged or neither.
        KvantError: It cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        check_pointer(path, head)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise LimitError(f"{path}: {path.stat().st_size} bytes are above {MAX_FILE_BYTES}. {_AGAIN}")
        importance = _from_gguf(path) if head.startswith(b"GGUF") else _from_legacy(path, _mapped(path))
    except OSError as error:
        raise KvantError(f"{path}: {error.strerror or error}. Check the path.") from error
    importance.check_finite()
    return importance


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")


def write_imatrix(path: Path, importance: Importance, *, overwrite: bool = False) -> None:
    """Write an importance file as llama.cpp reads it: the old layout if its name ends in `.dat`, else GGUF.

    The old layout has room for one text, the last, and none for the tokens per chunk.

    Raises:
        OutputExistsError: The file exists and `overwrite` is false.
    """
    if path.suffix.lower() == ".dat":
        with atomic_write(path, overwrite=overwrite) as file:
            file.write(_legacy(importance))
        return
    metadata = {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(ValueType.STRING, list(importance.datasets)),
        "imatrix.chunk_count": u32(importance.n_chunks),
        "imatrix.chunk_size": u32(importance.chunk_size),
    }
    tensors: list[Tensor] = []
    for name in sorted(importance.entries):
        entry = importance.entries[name]
        tensors.append(array_tensor(f"{name}.in_sum2", entry.sums.astype(np.float32), F32))
        tensors.append(array_tensor(f"{name}.counts", entry.counts.astype(np.float32).reshape(-1, 1), F32))
    write_gguf(path, metadata, tensors, overwrite=overwrite)


def _legacy(importance: Importance) -> bytes:
    """Return the old layout, tensors in order of name; those that were never called are left out, as upstream does."""
    called = {name: entry for name, entry in sorted(importance.entries.items()) if entry.counts.max() > 0}
    parts = [struct.pack("<i", len(called))]
    for name, entry in called.items():
        calls = min(MAX_COUNT, int(np.ceil(entry.counts.max() / max(importance.chunk_size, 1))))
        with np.errstate(over="ignore"):
            values = (entry.weights() * np.float32(calls)).astype("<f4")
        if not np.isfinite(values).all():  # the mean of one call is the same mean
            calls, values = 1, entry.weights().astype("<f4")
        parts += [_text(name), struct.pack("<ii", calls, values.size), values.tobytes()]
    parts += [struct.pack("<i", importance.n_chunks), _text(importance.datasets[-1] if importance.datasets else "")]
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<i", len(data)) + data


def _from_gguf(path: Path) -> Importance:
    model = read_gguf(path)
    suffixes = {".in_sum2": {}, ".counts": {}}  # type: dict[str, dict[str, Tensor]]
    for name, tensor in model.tensors.items():
        for suffix, found in suffixes.items():
            if name.endswith(suffix):
                found[name.removesuffix(suffix)] = tensor
    sums, counts = suffixes.values()
    if not sums and not counts:
        raise FormatError(
            f"{path}: is a GGUF without importance (general.type {model.get('general.type')!r}). Give an importance "
            f"file; kvant calibrate measures one."
        )
    if not sums or sums.keys() != counts.keys():
        raise FormatError(f"{path}: {len(sums)} sums and {len(counts)} counts do not pair. Give an importance file.")
    entries = {name: _gguf_entry(path, name, sums[name], counts[name]) for name in sums}
    datasets = model.get("imatrix.datasets", ())
    return Importance(
        entries=entries,
        datasets=tuple(str(name) for name in datasets) if not isinstance(datasets, str | int | float) else (),  # type: ignore[attr-defined]
        n_chunks=_count(model, "imatrix.chunk_count"),
        chunk_size=_count(model, "imatrix.chunk_size"),
        source=path.name,
    )


def _gguf_entry(path: Path, name: str, sums: Tensor, counts: Tensor) -> Entry:
    if sums.block_type != F32 or counts.block_type != F32:
        raise FormatError(f"{path}: {name}: {sums.block_type} sums and {counts.block_type} counts, not F32. {_AGAIN}")
    divisors, summed = _values(counts), _values(sums)
    if not np.isfinite(divisors).all() or (divisors < 0).any():
        raise FormatError(f"{path}: {name}: a count is {divisors.min()} or not finite, but counts tokens. {_AGAIN}")
    divisors = np.rint(divisors)
    if not divisors.size or summed.size % divisors.size:
        raise FormatError(f"{path}: {name}: {summed.size} sums for {divisors.size} counts. {_AGAIN}")
    return Entry(sums=summed.reshape(divisors.size, -1), counts=divisors)


def _values(tensor: Tensor) -> np.ndarray:
    """All values of an F32 tensor, float32 [any]; not to be written to."""
    return tensor.read_bytes(0, n_rows(tensor)).reshape(-1).view(np.float32)


def _count(model: Model, key: str) -> int:
    value = model.metadata.get(key, Value(ValueType.UINT32, 0)).value
    if not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise FormatError(f"{model.path}: {key} {value!r:.40} is not a count up to {MAX_COUNT}. {_AGAIN}")
    return value


class _Bytes:
    """Reads little-endian fields of the old layout, each checked against what is left."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, n_bytes: int) -> memoryview:
        if n_bytes < 0 or self.position + n_bytes > len(self.data):
            raise FormatError(
                f"{self.path}: {n_bytes} bytes at {self.position} go past its {len(self.data)}. "
                f"Give an importance file (.dat or .gguf)."
            )
        self.position += n_bytes
        return self.data[self.position - n_bytes : self.position]

    def int32(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def text(self) -> str:
        raw = bytes(self.take(self.int32()))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: the text {raw[:40]!r} is not UTF-8. {_AGAIN}") from None


def _from_legacy(path: Path, data: memoryview) -> Importance:
    fields = _Bytes(path, data)
    count = fields.int32()
    if not 0 < count <= MAX_ENTRIES:
        raise FormatError(
            f"{path}: {count} entries are not 1 to {MAX_ENTRIES}. Give an importance file (.dat or .gguf)."
        )
    entries = {}
    for _ in range(count):
        name = fields.text()
        if name in entries:
            raise FormatError(f"{path}: {name!r:.80} is there twice. {_AGAIN}")
        calls, n_values = fields.int32(), fields.int32()
        if n_values < 1:
            raise FormatError(f"{path}: {name}: {n_values} values. {_AGAIN}")
        sums = np.frombuffer(fields.take(4 * n_values), "<f4").reshape(1, -1)
        entries[name] = Entry(sums=sums, counts=np.array([calls if calls > 0 else 1], np.float32))
    chunks, dataset = 0, ""
    if fields.position < len(data):
        chunks = max(0, fields.int32())
        if fields.position < len(data):
            dataset = fields.text()
    return Importance(entries=entries, datasets=(dataset,) if dataset else (), n_chunks=chunks, source=path.name)
