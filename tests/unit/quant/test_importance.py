import numpy as np
import pytest

from kvant.dtypes import F32
from kvant.errors import PlanError, ValueRangeError
from kvant.quant.importance import Entry, Importance
from kvant.tensors import LazyTensor, array_tensor


def tensor(name: str, *shape: int) -> LazyTensor:
    return array_tensor(name, np.zeros(shape, np.float32), F32)


ENTRY = Entry(
    sums=np.array([[2, 4, 6], [1, 1, 1]], np.float32),
    counts=np.array([2, 0], np.float32),
)
IMPORTANCE = Importance(entries={"blk.0.ffn_up_exps.weight": ENTRY, "token_embd.weight": ENTRY})


def test_sums_are_divided_by_their_counts_and_experts_never_called_weigh_alike() -> None:
    np.testing.assert_array_equal(ENTRY.weights(), np.array([[1, 2, 3], [1, 1, 1]], np.float32))
    assert ENTRY.weights().dtype == np.float32


def test_weights_come_per_matrix() -> None:
    found = IMPORTANCE.weights_for(tensor("blk.0.ffn_up_exps.weight", 2, 5, 3))
    assert found is not None
    assert found.shape == (2, 3)
    assert IMPORTANCE.weights_for(tensor("blk.0.attn_q.weight", 5, 3)) is None


def test_importance_of_another_model_is_refused_but_for_embeddings() -> None:
    with pytest.raises(PlanError, match="6 channels are not the tensor's 4"):
        IMPORTANCE.weights_for(tensor("blk.0.ffn_up_exps.weight", 5, 4))
    assert IMPORTANCE.weights_for(tensor("token_embd.weight", 5, 4)) is None


def test_it_must_be_finite() -> None:
    IMPORTANCE.check_finite()
    bad = Entry(sums=np.array([[1, np.nan]], np.float32), counts=np.ones(1, np.float32))
    with pytest.raises(ValueRangeError, match=r"blk\.0\.x: holds NaN"):
        Importance(entries={"blk.0.x": bad}).check_finite()


def test_the_digest_follows_what_decides_bytes() -> None:
    other = Importance(
        entries={**IMPORTANCE.entries, "token_embd.weight": Entry(sums=ENTRY.sums * 2, counts=ENTRY.counts)}
    )
    assert IMPORTANCE.sha256 == Importance(entries=dict(IMPORTANCE.entries)).sha256
    assert IMPORTANCE.sha256 != other.sha256
