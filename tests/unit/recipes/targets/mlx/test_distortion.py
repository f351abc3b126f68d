import numpy as np
import pytest

from kvant.formats.huggingface.mlx.schemes import named_grouping, type_names
from kvant.kernels.fitting import prepare
from kvant.kernels.mlx import dequantize, quantize
from kvant.recipes.targets.mlx.distortion import DISTORTION, is_finer
from kvant.recipes.targets.mlx.fitted import fitted, is_fittable

N = 1024


@pytest.mark.parametrize("name", DISTORTION)
def test_the_table_is_what_the_encoders_do(name: str) -> None:
    weights = np.random.default_rng(2).standard_normal((96, N)).astype(np.float32)
    grouping = named_grouping(name)
    even = prepare(np.eye(N), damping=0.15)
    ways = [quantize(weights, grouping)] + ([fitted(weights, grouping, even)] if is_fittable(grouping) else [])
    figures = [figure for figure in DISTORTION[name] if figure is not None]
    for rows, figure in zip(ways, figures, strict=True):
        error = np.square(weights - dequantize(rows, grouping)).sum()
        assert error / np.square(weights).sum() == pytest.approx(figure, rel=0.05)


def test_every_type_that_can_be_asked_for_has_a_figure() -> None:
    for name in [name for name in type_names() if not name.startswith("mixed")]:
        assert {name, f"{name}-g64"} & set(DISTORTION)


@pytest.mark.parametrize(
    ("fine", "coarse", "is_certain"),
    [
        ("4bit-g64", "4bit-g64", True), ("4bit-g32", "4bit-g64", True), ("4bit-g64", "4bit-g32", False),
        ("5bit-g64", "4bit-g32", True), ("4bit-g32", "5bit-g64", False), ("8bit-g64", "mxfp8", True),
        ("4bit-g64", "mxfp4", False), ("mxfp4", "4bit-g64", False), ("mxfp8", "mxfp4", True), ("mxfp4", "mxfp4", True),
    ],
)  # fmt: skip
def test_what_is_finer_for_certain(fine: str, coarse: str, is_certain: bool) -> None:
    assert is_finer(fine, coarse) == is_certain
    if is_certain:
        assert DISTORTION[fine][0] <= DISTORTION[coarse][0]
