"""The page on block types says what the table of types, the fallback rules and the kernels say."""

import re
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.kernels import _ext
from kvant.quant.plan import fitting_type

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "explanation" / "block-types.md"
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| `\w+` \|", line)
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}


def test_every_type_that_shrinks_float32_has_a_row() -> None:
    assert set(ROWS) == {name for name, *_, decodes in _ext.types() if decodes} - {"F32"}


@pytest.mark.parametrize("name", ROWS)
def test_sizes_and_class(name: str) -> None:
    kind = BLOCK_TYPES[name]
    expected = [str(kind.block_length), str(kind.block_bytes), f"{kind.bpw:g}", kind.precision_class.value]
    assert ROWS[name][:4] == expected


@pytest.mark.parametrize("name", ROWS)
def test_fallback(name: str) -> None:
    if BLOCK_TYPES[name].block_length <= 32 or name in ("Q1_0", "NVFP4"):  # llama.cpp has no substitute for these two
        assert ROWS[name][5] == ""
    else:
        assert ROWS[name][5] == f"`{fitting_type(name, 32 * 17)}`"


@pytest.mark.parametrize("name", ROWS)
def test_error_on_normal_weights(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    importance = np.ones(1024, np.float32) if BLOCK_TYPES[name].family == Family.CODEBOOK else None
    decoded = kvant.decode(kvant.encode(x, name, importance=importance), name, 1024)
    error = 100 * np.sqrt(np.mean((decoded - x) ** 2) / np.mean(x**2))
    assert ROWS[name][4] == f"{error:.2g}"
