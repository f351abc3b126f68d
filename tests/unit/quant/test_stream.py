import mmap
from pathlib import Path

import numpy as np
import pytest

from kvant import kernels
from kvant.dtypes import BF16, BLOCK_TYPES, F16, F32
from kvant.errors import ValueRangeError
from kvant.quant.stream import Job, encode_stream, encoded_tensor, release
from kvant.tensors import LazyTensor, array_tensor

Q8_0, Q4_K = BLOCK_TYPES["Q8_0"], BLOCK_TYPES["Q4_K"]


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(job: Job, **options: int) -> np.ndarray:
    return np.concatenate([piece.data.reshape(-1) for piece in encode_stream([job], **options)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("piece_weights", [1, 1000, 1 << 20])
def test_pieces_and_threads_do_not_change_bytes(threads: int, piece_weights: int) -> None:
    x = weights(37, 256)
    job = Job(tensor=array_tensor("t", x, F32), target=Q4_K)
    found = stored(job, threads=threads, piece_weights=piece_weights)
    np.testing.assert_array_equal(found, kernels.encode(x, Q4_K).reshape(-1))


def test_jobs_come_in_order_and_say_when_they_end() -> None:
    jobs = [Job(tensor=array_tensor(f"t{i}", weights(9, 32, seed=i), F32), target=Q8_0) for i in range(5)]
    pieces = list(encode_stream(jobs, threads=2, piece_weights=64))
    assert [p.job for p in pieces] == sorted(p.job for p in pieces)
    assert [p.job for p in pieces if p.is_last] == [0, 1, 2, 3, 4]
    assert sum(p.source_bytes for p in pieces) == 5 * 9 * 32 * 4


@pytest.mark.parametrize("piece_weights", [256, 700, 1 << 20])
def test_every_expert_is_weighed_by_its_own_importance(piece_weights: int) -> None:
    x = weights(3, 7, 256)
    importance = np.abs(weights(3, 256, seed=1)) + np.float32(0.01)
    job = Job(tensor=array_tensor("t", x, F32), target=Q4_K, importance=importance)
    expected = np.concatenate([kernels.encode(x[e], Q4_K, importance=importance[e]) for e in range(3)])
    np.testing.assert_array_equal(stored(job, piece_weights=piece_weights), expected.reshape(-1))
    np.testing.assert_array_equal(encoded_tensor(job).read_bytes(5, 16), expected[5:16])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("source", "target"), [(F32, Q8_0), (F16, Q8_0), (F32, F32), (F16, F16), (BF16, BF16)])
def test_weights_that_are_not_finite_are_refused(bad: float, source: object, target: object) -> None:
    x = weights(64, 32)
    x[41, 7] = bad
    values = {"F32": x, "F16": x.astype(np.float16), "BF16": (x.view(np.uint32) >> 16).astype(np.uint16)}[str(source)]
    job = Job(tensor=array_tensor("blk.0.x", values, source), target=target)  # type: ignore[arg-type]
    with pytest.raises(ValueRangeError, match=r"blk\.0\.x"):
        stored(job, piece_weights=64)


def test_an_empty_tensor_gives_nothing() -> None:
    assert list(encode_stream([Job(tensor=array_tensor("t", np.zeros((0, 32), np.float32), F32), target=Q8_0)])) == []


def test_pages_of_a_mapped_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(weights(2048, 256).tobytes())
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    before = data.copy()
    tensor = LazyTensor(
        name="t", shape=(2048, 256), block_type=F32, read=lambda a, b: data[a * 1024 : b * 1024].reshape(b - a, 1024)
    )
    copied = stored(Job(tensor=tensor, target=F32), piece_weights=4096)
    np.testing.assert_array_equal(copied, before)
    release(data)
    np.testing.assert_array_equal(data, before)


def test_memory_that_is_no_file_is_left_alone() -> None:
    x = weights(64, 1024)
    before = x.copy()
    release(x)
    release(x[3:40])
    np.testing.assert_array_equal(x, before)
