"""Encoding a stream of tensors under Hessians."""

import numpy as np
import pytest

from kvant import kernels
from kvant.dtypes import F32, block_type
from kvant.errors import PlanError, ValueRangeError
from kvant.kernels import nbits
from kvant.kernels.fitting import fit, prepare
from kvant.quant.curvature import DAMPING, EMBEDDING_DAMPING, Curvatures, diagonal
from kvant.quant.importance import Entry, Importance
from kvant.quant.stream import Job, encode_stream
from kvant.tensors import array_tensor

N, ROWS = 64, 70


def matrix(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((ROWS, N)) * 0.1).astype(np.float32)


def hessian(name: str) -> np.ndarray:
    x = np.random.default_rng(len(name)).standard_normal((200, N)) @ np.random.default_rng(5).standard_normal((N, N))
    return np.asarray(x.T @ x / 200)


CURVATURES = Curvatures(names=["a.weight"], hessian=hessian, sha256="0")
A, B = (array_tensor(name, matrix(), F32) for name in ("a.weight", "b.weight"))


def encoded(x: np.ndarray, kind: str, *, threads: int, piece_weights: int) -> np.ndarray:
    target, tensor = block_type(kind), array_tensor("a.weight", x, F32)
    job = Job(tensor=tensor, target=target, encoder=CURVATURES.encoder(tensor, target))
    return np.concatenate([p.data for p in encode_stream([job], threads=threads, piece_weights=piece_weights)])


def test_importance_is_a_diagonal_of_hessians() -> None:
    channels = np.random.default_rng(3).random(N).astype(np.float32) ** 4 + np.float32(1e-3)
    entry = Entry(sums=5 * channels[None], counts=np.array([5], np.float32))
    tensors = {name: array_tensor(name, matrix(), F32) for name in ("a.weight", "b.weight")}
    found = diagonal(Importance(entries={"a.weight": entry}), tensors)
    assert set(found.names) == {"a.weight"}
    np.testing.assert_allclose(found.hessian("a.weight"), np.diag(channels), rtol=1e-6)
    x, kind = matrix(), nbits.nbits_type("MatMulNBits4_b32")
    fitted, rounded = nbits.fit(x, kind, found.ready("a.weight"))[0], nbits.encode(x, kind)
    weighed, plain = ((blocks.decode() - x) ** 2 @ channels for blocks in (fitted, rounded))
    assert weighed.sum() < 0.8 * plain.sum()
    assert (weighed < plain).mean() > 0.9
    with pytest.raises(PlanError, match="no matrix of this model"):
        diagonal(Importance(entries={"c.weight": entry}), tensors)
    with pytest.raises(PlanError, match="64 channels are not the tensor's 32"):
        diagonal(Importance(entries={"a.weight": entry}), {"a.weight": array_tensor("a.weight", x[:, :32].copy(), F32)})


@pytest.mark.parametrize("kind", ["Q4_1", "IQ4_NL"])
def test_a_stream_encodes_as_the_fit_does_however_it_is_cut(kind: str) -> None:
    x = matrix()
    expected, _ = fit(x, kind, prepare(hessian("a.weight"), damping=DAMPING))
    for threads, piece in ((1, 1 << 20), (3, 10 * N), (2, 1)):
        np.testing.assert_array_equal(encoded(x, kind, threads=threads, piece_weights=piece), expected)


def test_a_hessian_of_few_tokens_is_damped_more_and_the_embedding_always_least() -> None:
    assert CURVATURES.damping("a.weight", N, 0) == DAMPING
    assert DAMPING < CURVATURES.damping("a.weight", N, 1 << 20) < DAMPING * 1.01
    assert CURVATURES.damping("a.weight", N, N) == DAMPING + 1
    assert CURVATURES.damping("token_embd.weight", N, N) == EMBEDDING_DAMPING


def test_each_expert_is_encoded_under_its_own_hessian() -> None:
    x = np.stack([matrix(1), matrix(2), matrix(3)])
    tensor, kind = array_tensor("a.weight", x, F32), block_type("Q4_1")
    stacked = Curvatures(
        names=["a.weight"], hessian=hessian, sha256="0", expert=lambda name, number: (hessian(f"{name}{number}" * 2), 9)
    )
    job = Job(tensor=tensor, target=kind, encoder=stacked.encoder(tensor, kind))
    for threads, piece in ((1, 1 << 20), (3, 7 * N)):
        found = np.concatenate([p.data for p in encode_stream([job], threads=threads, piece_weights=piece)])
        for number, rows in enumerate(x):
            curvature = prepare(hessian(f"a.weight{number}" * 2), damping=stacked.damping("a.weight", N, 9))
            np.testing.assert_array_equal(found.reshape(3, ROWS, -1)[number], fit(rows, kind, curvature)[0])


def test_what_was_not_measured_or_cannot_be_fitted_has_no_encoder() -> None:
    assert CURVATURES.encoder(B, block_type("Q4_1")) is None
    assert CURVATURES.encoder(A, block_type("F16")) is None


def test_a_hessian_is_made_ready_once_forgotten_with_the_last_row_and_then_made_again() -> None:
    made: list[str] = []

    def counted(name: str) -> np.ndarray:
        made.append(name)
        return hessian(name)

    encoder = Curvatures(names=["a.weight"], hessian=counted, sha256="0").encoder(A, block_type("Q5_0"))
    assert encoder is not None
    encoder.make_ready()
    first = encoder(matrix()[: ROWS - 1])
    assert len(made) == 1
    encoder(matrix()[ROWS - 1 :], first_row=ROWS - 1)
    np.testing.assert_array_equal(encoder(matrix())[: ROWS - 1], first)
    assert len(made) == 2
    assert kernels.decode(first, "Q5_0", N).shape == (ROWS - 1, N)


def test_a_hessian_that_cannot_be_made_ready_is_told_to_all_who_wait() -> None:
    broken = Curvatures(names=["a.weight"], hessian=lambda _: np.zeros((N, N)), sha256="0")
    encoder = broken.encoder(A, block_type("Q5_0"))
    assert encoder is not None
    for _ in range(2):
        with pytest.raises(ValueRangeError, match="must be positive"):
            encoder.make_ready()
    jobs = [Job(tensor=A, target=block_type("Q5_0"), encoder=broken.encoder(A, block_type("Q5_0")))] * 2
    with pytest.raises(ValueRangeError, match="must be positive"):
        list(encode_stream(jobs, threads=2))


def test_a_weight_that_is_no_number_is_refused_by_name() -> None:
    x = matrix()
    x[3, 7] = np.nan
    with pytest.raises(ValueRangeError, match=r"a\.weight: row 3, column 7"):
        encoded(x, "Q4_1", threads=1, piece_weights=1 << 20)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((N, N)), "must be positive"),
        (np.full((N, N), np.nan), "finite"),
        (np.ones((N, N - 1)), "square"),
        (np.diag([1.0] * (N - 1) + [-9.0]), "positive"),
    ],
)
def test_a_hessian_that_is_none_is_refused(bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueRangeError, match=message):
        prepare(bad, damping=0.01)
