"""Encode many tensors as a stream: workers encode pieces ahead while the caller writes them in order.

Memory stays at a few pieces, whatever the size of a tensor: pages of a mapped source are given back once used. Hessians
of tensors to come are factored meanwhile, as many as there are threads and a third of the free memory holds.
"""

import contextlib
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kvant import kernels
from kvant.devices.limits import cores, spare_bytes
from kvant.dtypes import BlockType
from kvant.errors import ValueRangeError
from kvant.kernels.codec import check_finite
from kvant.quant.curvature import READY_BYTES, FittedEncoder
from kvant.tensors import LazyTensor, Tensor, n_rows, row_length

PIECE_WEIGHTS = 1 << 22
"""Weights in a piece: 8 MB as float16; smaller ones cost hand-overs, larger ones memory."""

FITTED_PIECE_WEIGHTS = 1 << 18
"""Weights in a piece that is encoded under a Hessian, tenths of a second, so that no thread waits long for the last one
of a matrix."""

FITTED_ROWS = 64
"""Rows that are worked on together there; see native/include/kvant/fit.h. Pieces have whole multiples of them."""

PIECES_AHEAD = 3
"""Encoded pieces that may wait for the caller, beyond those being encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A tensor to be stored.

    Attributes:
        tensor: The tensor.
        target: Type to store it in; its own type copies it.
        importance: Weight of each input channel in the error, float32 [matrices, n], or None.
        encoder: Encodes the rows in place of the kernel of the type, or None.
    """

    tensor: Tensor
    target: BlockType
    importance: np.ndarray | None = None
    encoder: FittedEncoder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some rows of a job, stored.

    Attributes:
        job: Number of the job.
        data: Rows in the target type, uint8 [rows, row_bytes].
        source_bytes: Bytes that the rows had before.
        is_last: Whether they are the job's last.
    """

    job: int
    data: np.ndarray
    source_bytes: int
    is_last: bool


def encode_stream(jobs: Iterable[Job], *, threads: int = 0, piece_weights: int = PIECE_WEIGHTS) -> Iterator[Piece]:
    """Encode tensors piece by piece, in order.

    Args:
        jobs: Tensors in the order they are wanted.
        threads: Pieces encoded at a time; 0 for one per core.
        piece_weights: Weights in a piece, at least one row.

    Yields:
        Pieces; the data of a copied tensor is a view of its source, valid until the next piece is asked for.

    Raises:
        ValueRangeError: A weight is NaN or infinite.
    """
    workers = threads or cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    waiting: deque[Future[Piece]] = deque()
    try:
        for task in _tasks(_made_ready(jobs, pool, workers), piece_weights):
            waiting.append(pool.submit(_encode, *task))
            if len(waiting) >= workers + PIECES_AHEAD:
                yield from _delivered(waiting.popleft())
        while waiting:
            yield from _delivered(waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encoded_tensor(job: Job, *, threads: int = 0) -> LazyTensor:
    """Return a tensor that is encoded as it is read, for writers that ask for rows themselves."""
    tensor = job.tensor
    matrix = _matrix_rows(job)

    def read(start: int, stop: int) -> np.ndarray:
        cuts = [start, *range((start // matrix + 1) * matrix, stop, matrix), stop]
        parts = [_stored(job, tensor.read_bytes(a, b), a, threads=threads) for a, b in pairwise(cuts)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=job.target, read=read)


def _tasks(jobs: Iterable[Job], piece_weights: int) -> Iterator[tuple[int, Job, int, int]]:
    """Cut jobs into row ranges; a range never spans two matrices of different importance."""
    for number, job in enumerate(jobs):
        rows = n_rows(job.tensor)
        matrix = _matrix_rows(job)
        step = max(1, piece_weights // max(1, row_length(job.tensor)))
        if job.encoder is not None:
            few = FITTED_PIECE_WEIGHTS // max(1, row_length(job.tensor)) // FITTED_ROWS * FITTED_ROWS
            step = min(step, max(FITTED_ROWS, few))
        for first in range(0, rows, max(1, matrix)):
            for start in range(first, first + matrix, step):
                yield number, job, start, min(start + step, first + matrix)


def _made_ready(jobs: Iterable[Job], pool: ThreadPoolExecutor, workers: int) -> Iterator[Job]:
    """Yield jobs while those behind them have their Hessians factored, as far as memory goes."""
    room, ahead = spare_bytes(), deque[Job]()
    coming, held = iter(jobs), 0
    while True:
        while len(ahead) <= workers and (not ahead or held + _ready_bytes(ahead[-1]) <= room):
            job = next(coming, None)
            if job is None:
                break
            ahead.append(job)
            held += _ready_bytes(job)
            if job.encoder is not None and (len(ahead) == 1 or held <= room):
                pool.submit(job.encoder.make_ready)
        if not ahead:
            return
        job = ahead.popleft()
        yield job
        held -= _ready_bytes(job)


def _ready_bytes(job: Job) -> int:
    return READY_BYTES * row_length(job.tensor) ** 2 if job.encoder is not None else 0


def _matrix_rows(job: Job) -> int:
    """Rows that have one importance or one Hessian."""
    rows = n_rows(job.tensor)
    if job.encoder is not None:
        return job.encoder.matrix_rows
    return rows // len(job.importance) if job.importance is not None else rows


def _delivered(future: Future[Piece]) -> Iterator[Piece]:
    piece = future.result()
    yield piece
    release(piece.data)


def _encode(number: int, job: Job, start: int, stop: int) -> Piece:
    data = job.tensor.read_bytes(start, stop)
    stored = _stored(job, data, start, threads=1)
    if stored is not data:
        release(data)
    return Piece(job=number, data=stored, source_bytes=data.nbytes, is_last=stop == n_rows(job.tensor))


def _stored(job: Job, data: np.ndarray, start: int, *, threads: int) -> np.ndarray:
    """Return rows in the target type; `start` is the number of the first, and all are of one matrix."""
    tensor = job.tensor
    if tensor.block_type == job.target:
        try:
            check_finite(data, job.target, row_length(tensor), first_row=start)
        except ValueRangeError as error:
            raise ValueRangeError(f"{tensor.name}: {error}") from error
        return data
    if job.encoder is not None:
        x = kernels.decode(data, tensor.block_type, row_length(tensor), threads=threads)
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise ValueRangeError(
                f"{tensor.name}: row {start + row}, column {column}: {x[row, column]} is not a finite weight. "
                f"Download or convert the source again."
            )
        return job.encoder(x, first_row=start, threads=threads)
    weights = None if job.importance is None else job.importance[start * len(job.importance) // n_rows(tensor)]
    try:
        return kernels.transcode(
            data, tensor.block_type, job.target, row_length(tensor), importance=weights, threads=threads,
            first_row=start,
        )  # fmt: skip
    except ValueRangeError as error:
        raise ValueRangeError(f"{tensor.name}: {error}") from error


def release(view: np.ndarray) -> None:
    """Give the pages behind a view of a mapped file back to the system; anything else is left alone.

    The file's pages stay in the system's cache; they only stop counting as this process's memory.
    """
    base: object = view
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    origin = np.frombuffer(base, np.uint8, count=1).ctypes.data
    page = mmap.PAGESIZE
    # Whole pages inside the view: a neighbour may be reading the ones it shares.
    start = -(-(view.ctypes.data - origin) // page) * page
    stop = (view.ctypes.data + view.nbytes - origin) // page * page
    if stop > start:
        with contextlib.suppress(OSError, ValueError):
            base.madvise(mmap.MADV_DONTNEED, start, stop - start)
