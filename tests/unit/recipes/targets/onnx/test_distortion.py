"""The table of what blocks cost on normal weights."""

import numpy as np
import pytest

from kvant.kernels.fitting import prepare
from kvant.kernels.nbits import encode, fit, nbits_type
from kvant.quant.curvature import DAMPING
from kvant.recipes.targets.onnx.distortion import DISTORTION, is_finer
from kvant.recipes.targets.onnx.encoding import can_fit
from kvant.recipes.targets.onnx.plan import ALL, CANDIDATES

N = 256


def test_every_type_has_figures() -> None:
    assert set(DISTORTION) == {kind.name for kind in ALL}
    assert {name for name, (_, weighed) in DISTORTION.items() if weighed} == {k.name for k in ALL if can_fit(k)}
    assert all(can_fit(kind) for kind in CANDIDATES)


@pytest.mark.parametrize("name", DISTORTION)
def test_the_table_is_what_the_encoders_do(name: str) -> None:
    kind, (plain, weighed) = nbits_type(name), DISTORTION[name]
    x = np.random.default_rng(2).standard_normal((1024, N)).astype(np.float32)
    rounded = encode(x, kind).decode()
    assert np.square(rounded - x).sum() / np.square(x).sum() == pytest.approx(plain, rel=0.03)
    if weighed is not None:
        fitted = fit(x[:256], kind, prepare(np.eye(N), damping=DAMPING))[0].decode()
        assert np.square(fitted - x[:256]).sum() / np.square(x[:256]).sum() == pytest.approx(weighed, rel=0.03)


def test_finer_blocks_have_more_bits_or_are_shorter() -> None:
    assert is_finer("MatMulNBits8_b128", "MatMulNBits4_b32")
    assert is_finer("MatMulNBits4_b32", "MatMulNBits4_b64")
    assert not is_finer("MatMulNBits4_b64", "MatMulNBits4_b32")
    assert not is_finer("MatMulNBits2_b32", "MatMulNBits2_b64_sym")  # at 2 bits the middle matters more than the span
    for fine in DISTORTION:
        for coarse in DISTORTION:
            assert not is_finer(fine, coarse) or DISTORTION[fine][0] <= DISTORTION[coarse][0]
