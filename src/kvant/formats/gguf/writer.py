"""Write GGUF files as a stream: nothing appears under the final name before every byte is there and synced."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from kvant.errors import FormatError, LimitError
from kvant.files import check_output, commit_file, disk_errors, partial_path
from kvant.formats.gguf import spec
from kvant.formats.gguf.layout import Layout, TensorInfo, checked_alignment, file_layout, padded
from kvant.formats.gguf.reader import shard_paths
from kvant.metadata import Value, ValueType
from kvant.progress import SILENT, Progress
from kvant.tensors import Tensor, n_bytes, n_rows

CHUNK_BYTES = 1 << 24

__all__ = ["GGUFWriter", "Layout", "TensorInfo", "file_layout", "write_gguf"]


class GGUFWriter:
    """Writes one GGUF file, tensor bytes in any pieces but in order; it appears under its name when complete.

    Attributes:
        layout: Where everything of the file lies.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Value],
        infos: Sequence[TensorInfo],
        *,
        overwrite: bool = False,
        done: int = 0,
        keep_partial: bool = False,
        commit: bool = True,
    ) -> None:
        """Lay the file out; nothing is written before the `with` block is entered.

        Args:
            path: Final name; the file grows under `<name>.partial` beside it.
            metadata: Values by key, in order.
            infos: Tensors in the order their bytes will come.
            overwrite: Replace an existing file.
            done: Continue a partial file whose first `done` tensors are complete.
            keep_partial: Keep the partial file when an error ends the block, so that `done` can continue it.
            commit: Give the complete file its final name; otherwise it stays, synced, under its partial name.

        Raises:
            OutputExistsError: The file exists and `overwrite` is false.
            FormatError: See `file_layout`.
        """
        check_output(path, overwrite=overwrite)
        self.layout = file_layout(metadata, infos)
        self._path, self._partial, self._infos = path, partial_path(path), tuple(infos)
        self._done, self._keep, self._commit = done, keep_partial, commit
        self._index, self._left = done, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with disk_errors(self._path):
            self._file = self._continue() if self._done else self._partial.open("wb")
            try:
                if not self._done:
                    self._file.write(self.layout.header)
                self._left = self._infos[self._index].n_bytes if self._index < len(self._infos) else 0
                self._close_tensors()
            except BaseException:
                self._give_up()
                raise
        return self

    def append(self, data: np.ndarray) -> None:
        """Write the next bytes of the tensors; a piece may end or begin anywhere, and span tensors.

        Args:
            data: The bytes, uint8 [any].

        Raises:
            FormatError: More bytes than the tensors hold.
            KvantError: The disk is full.
        """
        assert self._file is not None, "enter the writer first"
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        with disk_errors(self._path):
            while len(view):
                if self._index == len(self._infos):
                    raise FormatError(f"{self._path}: {len(view)} bytes come after its last tensor. Give each once.")
                piece, view = view[: self._left], view[self._left :]
                self._file.write(piece)
                self._left -= len(piece)
                self._close_tensors()

    def sync(self) -> int:
        """Make what came so far durable, so that a crash after this call can be continued.

        Returns:
            Number of complete tensors.
        """
        assert self._file is not None, "enter the writer first"
        with disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._index

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if error is None:
                self._finish(self._file)
        except BaseException:
            self._give_up()
            raise
        if error is not None:
            self._give_up()

    def _continue(self) -> BinaryIO:
        """Open a partial file again behind its complete tensors, after checking that it is of the same layout."""
        ends = [*self.layout.offsets.values(), self.layout.total_bytes]
        position = ends[self._done]
        if not self._partial.is_file():
            raise FormatError(f"{self._partial}: is not there to be continued. Start again without --resume.")
        file = self._partial.open("r+b")
        if file.read(len(self.layout.header)) != self.layout.header or file.seek(0, os.SEEK_END) < position:
            file.close()
            raise FormatError(f"{self._partial}: is not the beginning of this file. Start again without --resume.")
        file.seek(position)
        file.truncate()
        return file

    def _close_tensors(self) -> None:
        """Pad every tensor that is complete, and step to the next one that is not."""
        assert self._file is not None
        while self._index < len(self._infos) and self._left == 0:
            written = self._infos[self._index].n_bytes
            self._file.write(bytes(padded(written, self.layout.alignment) - written))
            self._index += 1
            self._left = self._infos[self._index].n_bytes if self._index < len(self._infos) else 0

    def _finish(self, file: BinaryIO) -> None:
        if self._index < len(self._infos):
            raise FormatError(
                f"{self._path}: {self._infos[self._index].name!r} lacks {self._left} bytes. Give every tensor whole."
            )
        with disk_errors(self._path):
            file.flush()
            os.fsync(file.fileno())
            assert file.tell() == self.layout.total_bytes
            file.close()
            if self._commit:
                commit_file(self._partial, self._path)

    def _give_up(self) -> None:
        """Close the partial file after an error; what its buffer could not write does not matter any more."""
        assert self._file is not None
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._keep:
            self._partial.unlink(missing_ok=True)


def write_gguf(
    path: Path,
    model_metadata: Mapping[str, Value],
    tensors: Iterable[Tensor],
    *,
    overwrite: bool = False,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
) -> tuple[Path, ...]:
    """Write a model, as it is stored, to one file, or to shards where it is longer than `max_file_bytes`.

    Shards are named and keyed as upstream does: `<stem>-00001-of-0000N.gguf`, `split.no`, `split.count` and
    `split.tensors.count`. They get their names when all are complete, the first one, which holds the metadata, last.

    Returns:
        The files written.

    Raises:
        OutputExistsError: One of the files exists and `overwrite` is false.
        LimitError: A tensor alone is longer than `max_file_bytes`.
        KvantError: The disk is full.
    """
    path = Path(path)
    listed = list(tensors)
    groups = [listed] if max_file_bytes is None else _groups(model_metadata, listed, max_file_bytes)
    paths = [path] if len(groups) == 1 else shard_paths(path, len(groups))
    for shard_path in paths:
        check_output(shard_path, overwrite=overwrite)
    progress.start("write", sum(map(n_bytes, listed)), "B")
    try:
        for index, group in enumerate(groups):
            shard = _shard_metadata(model_metadata, index, len(groups), len(listed))
            with GGUFWriter(paths[index], shard, _infos(group), overwrite=overwrite, commit=False) as writer:
                for piece in (piece for tensor in group for piece in _pieces(tensor)):
                    writer.append(piece)
                    progress.advance("write", piece.size)
        for shard_path in reversed(paths):
            commit_file(partial_path(shard_path), shard_path)
    except BaseException:
        for shard_path in paths:
            partial_path(shard_path).unlink(missing_ok=True)
        raise
    progress.finish("write")
    return tuple(paths)


def _infos(tensors: Sequence[Tensor]) -> list[TensorInfo]:
    return [TensorInfo(t.name, t.shape, t.block_type) for t in tensors]


def _pieces(tensor: Tensor) -> Iterator[np.ndarray]:
    """A tensor's rows in pieces of about 16 MB."""
    rows = n_rows(tensor)
    step = max(1, CHUNK_BYTES * rows // max(1, n_bytes(tensor)))
    for start in range(0, rows, step):
        yield tensor.read_bytes(start, min(start + step, rows))


def _groups(metadata: Mapping[str, Value], tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    """Share tensors out, in order, so that no file is longer than `limit`."""
    if file_layout(metadata, _infos(tensors)).total_bytes <= limit:
        return [tensors]
    alignment = checked_alignment(metadata)
    groups: list[list[Tensor]] = [[]]
    size = _shard_base(metadata, 0)
    for tensor in tensors:
        info = TensorInfo(tensor.name, tensor.shape, tensor.block_type)
        one = len(file_layout({}, [info]).header) + alignment + padded(info.n_bytes, alignment)
        if groups[-1] and size + one > limit:
            groups.append([])
            size = _shard_base(metadata, 1)
        if size + one > limit:
            raise LimitError(
                f"{tensor.name}: a file with it alone takes {size + one} bytes, above {limit}. "
                "Raise the size of a shard."
            )
        groups[-1].append(tensor)
        size += one
    return groups


def _shard_base(metadata: Mapping[str, Value], index: int) -> int:
    return len(file_layout(_shard_metadata(metadata, index, 2, 0), []).header)


def _shard_metadata(metadata: Mapping[str, Value], index: int, count: int, n_tensors: int) -> dict[str, Value]:
    """Metadata of one of `count` files: all of it in the first, elsewhere what a reader needs to find its way."""
    if count == 1:
        return dict(metadata)
    kept = metadata if index == 0 else {k: v for k, v in metadata.items() if k == spec.KEY_ALIGNMENT}
    return {
        **kept,
        spec.KEY_SPLIT_NO: Value(ValueType.UINT16, index),
        spec.KEY_SPLIT_COUNT: Value(ValueType.UINT16, count),
        spec.KEY_SPLIT_TENSORS: Value(ValueType.INT32, n_tensors),
    }
