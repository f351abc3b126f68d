"""What block types would cost, of stacks of experts: each under the second moment of its own tokens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from kvant.calibrate.statistics import BORROWED, Statistics, file_of, save, squares_of
from kvant.dtypes import F32
from kvant.kernels.fitting import Curvature
from kvant.model import Model
from kvant.quant.curvature import Curvatures
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.measure.rounding import rounding_costs, sample_rows
from kvant.tensors import Tensor, array_tensor

NAME = "blk.0.ffn_down_exps.weight"
STACK, ROWS, COLUMNS = 3, 4, 8
CURVATURE = 0.7
STEP = 0.25


def statistics(directory: Path, moments: np.ndarray, counts: list[int]) -> Statistics:
    save(file_of(directory, NAME, "hessian"), moments.sum(axis=0))
    save(file_of(directory, NAME, "experts"), moments)
    save(file_of(directory, NAME, "curvature"), np.float64(CURVATURE))
    np.savez(
        squares_of(directory, NAME),
        sums=np.stack([m.diagonal() for m in moments]),
        counts=np.array(counts, np.float64),
    )
    return Statistics(
        directory=directory, way="engine", groups={NAME: NAME}, lookups={}, n_windows=1, n_tokens=100, sha256="0",
    )  # fmt: skip


def cost(directory: Path, tensor: Tensor, known: Statistics) -> float:
    """What rounding to steps costs."""

    def rounded(x: np.ndarray, kind: str, curvature: Curvature) -> np.ndarray:
        assert kind == "steps"
        assert curvature.hessian.shape == (COLUMNS, COLUMNS)
        return np.round(x / STEP).astype(np.float32) * np.float32(STEP)

    curvatures = Curvatures(names={NAME}, hessian=known.hessian, sha256="0", n_tokens=100, expert=known.expert)
    calibration = cast("Calibration", SimpleNamespace(directory=directory, curvatures=curvatures, statistics=known))
    model = cast("Model", SimpleNamespace(tensors={NAME: tensor}))
    return rounding_costs(model, calibration, lambda _: ("steps",), rounded, key=0)[NAME]["steps"]


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((STACK, ROWS, COLUMNS)).astype(np.float32)


def moments_of(counts: list[int]) -> np.ndarray:
    random = np.random.default_rng(2)
    x = [random.standard_normal((n, COLUMNS)) * random.uniform(0.1, 3, COLUMNS) for n in counts]
    return np.stack([v.T @ v / sum(counts) for v in x]).astype(np.float32)


def test_experts_cost_what_their_own_tokens_see(weights: np.ndarray, tmp_path: Path) -> None:
    counts = [5000, 20_000, 75_000]
    moments = moments_of(counts)
    found = cost(tmp_path, array_tensor(NAME, weights, F32), statistics(tmp_path, moments, counts))
    errors = np.round(weights / STEP) * STEP - weights
    own = [np.einsum("ri,ij,rj->", e, m, e) / ROWS for e, m in zip(errors, moments, strict=True)]
    # Borrowed tokens and what is added for other text are small with so many of them.
    assert found == pytest.approx(0.5 * CURVATURE * sum(own), rel=0.02)


def test_an_expert_that_no_token_came_to_costs_what_it_borrows(weights: np.ndarray, tmp_path: Path) -> None:
    counts = [0, 40_000, 60_000]
    moments = moments_of(counts)
    spoilt = weights.copy()
    spoilt[0] += np.float32(STEP / 2) - spoilt[0] % np.float32(STEP)
    known = statistics(tmp_path, moments, counts)
    before = cost(tmp_path, array_tensor(NAME, weights, F32), known)
    for kept in tmp_path.glob("rounding-*"):
        kept.unlink()
    after = cost(tmp_path, array_tensor(NAME, spoilt, F32), known)
    assert before < after < 1.05 * before


def test_few_tokens_make_an_expert_cost_more_on_other_text(weights: np.ndarray, tmp_path: Path) -> None:
    found: list[float] = []
    for number, tokens in enumerate((16, 1600)):
        directory = tmp_path / str(number)
        directory.mkdir()
        moments = np.stack([np.eye(COLUMNS, dtype=np.float32) / STACK] * STACK)
        known = statistics(directory, moments, [tokens] * STACK)
        found.append(cost(directory, array_tensor(NAME, weights, F32), known))
    few, many = (1 + COLUMNS / (tokens + BORROWED) for tokens in (16, 1600))
    assert found[0] / found[1] == pytest.approx(few / many, rel=1e-4)


def test_rows_of_one_matrix_of_a_stack_are_its_own(weights: np.ndarray) -> None:
    tensor: Any = array_tensor(NAME, weights, F32)
    np.testing.assert_array_equal(sample_rows(tensor, 2, matrix=2), weights[2][[0, ROWS - 1]])
    np.testing.assert_array_equal(sample_rows(tensor, STACK * ROWS), weights.reshape(-1, COLUMNS))
