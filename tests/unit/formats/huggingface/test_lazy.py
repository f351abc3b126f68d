"""Tensors derived from others: every window of rows equals that window of the whole."""

import numpy as np
import pytest

from kvant.dtypes import BF16, F16, F32
from kvant.formats.huggingface.lazy import as_float32, columns, gathered, renamed, shifted
from kvant.kernels import encode
from kvant.tensors import LazyTensor, array_tensor

ROWS, N = 24, 32


def matrix(seed: int = 0) -> LazyTensor:
    values = np.random.default_rng(seed).standard_normal((ROWS, N)).astype(np.float16)
    return array_tensor("m", values, F16)


@pytest.mark.parametrize(("start", "stop"), [(0, ROWS), (5, 6), (7, 19), (3, 3)])
def test_gathered_rows_are_the_rows_named(start: int, stop: int) -> None:
    order = np.random.default_rng(1).permutation(ROWS)
    tensor = matrix()
    assert np.array_equal(
        gathered(tensor, order).read_bytes(start, stop), tensor.read_bytes(0, ROWS)[order][start:stop]
    )


def test_rows_of_blocks_move_whole() -> None:
    data = encode(np.random.default_rng(2).standard_normal((ROWS, N)).astype(np.float32), "Q8_0")
    tensor = LazyTensor(name="q", shape=(ROWS, N), block_type=matrix().block_type, read=lambda a, b: data[a:b])
    order = np.arange(ROWS)[::-1].copy()
    assert np.array_equal(gathered(tensor, order).read_bytes(0, ROWS), data[::-1])


def test_items_of_a_vector_move_alone() -> None:
    values = np.arange(8, dtype=np.float32)
    order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
    found = gathered(array_tensor("bias", values, F32), order).read_bytes(0, 1)
    assert np.array_equal(found.view(np.float32)[0], values[order])


def test_far_runs_are_read_one_by_one() -> None:
    asked: list[tuple[int, int]] = []
    rows = np.arange(1000, dtype=np.float32).reshape(-1, 1)

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return rows[start:stop].view(np.uint8)

    tensor = LazyTensor(name="m", shape=(1000, 1), block_type=F32, read=read)
    heads = np.arange(1000).reshape(10, 10, 10).swapaxes(0, 1).reshape(-1)  # heads of ten rows, a hundred apart
    found = gathered(tensor, heads).read_bytes(2, 30).view(np.float32).reshape(-1)
    assert np.array_equal(found, heads[2:30].astype(np.float32))
    assert asked == [(2, 10), (100, 110), (200, 210)]


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_columns_move_alone_or_by_heads(length: int) -> None:
    order = np.concatenate([np.arange(head * length, (head + 1) * length) for head in (2, 0, 3, 1)])
    values = np.arange(8 * length, dtype=np.float16).reshape(2, -1)
    found = columns(array_tensor("m", values, F16), order)
    assert np.array_equal(found.read_bytes(0, 2).view(np.float16), values[:, order])
    odd = columns(array_tensor("m", values, F16), order[::-1][:3])
    assert (odd.shape, odd.read_bytes(1, 2).view(np.float16).tolist()) == (
        (2, 3),
        [values[1][order[::-1][:3]].tolist()],
    )


def test_shift_is_one_float32_addition() -> None:
    values = np.array([0.5, -1.0, 1e-9, 3.0], np.float32)
    found = shifted(array_tensor("norm", values, F32), 1.0).read_bytes(0, 1).view(np.float32)[0]
    assert np.array_equal(found, values + np.float32(1))


def test_bf16_widens_exactly() -> None:
    bits = np.array([[0x3F80, 0xC000, 0x0001, 0x7F7F]], np.uint16)
    tensor = as_float32(array_tensor("b", bits, BF16))
    assert tensor.block_type == F32
    assert np.array_equal(tensor.read_bytes(0, 1).view(np.uint32), bits.astype(np.uint32) << 16)


def test_renamed_keeps_the_bytes() -> None:
    tensor = matrix()
    other = renamed(tensor, "other")
    assert (other.name, other.shape) == ("other", (ROWS, N))
    assert np.array_equal(other.read_bytes(0, 3), tensor.read_bytes(0, 3))
