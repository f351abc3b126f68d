"""Every decoder against ggml's own, bit for bit, at every instruction-set level this machine can run.

Blocks are random bytes, so every code, scale and index occurs, and NaN and infinite scales too. Not checked: sign and
payload of NaN weights. Which operand's NaN an addition keeps depends on the order a compiler puts them in.
"""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

import kvant
from ggml_oracle import ggml_decode
from kvant.dtypes import BLOCK_TYPES
from kvant.kernels import _ext, isa, reference

DECODED = [name for name, *_, decodes in _ext.types() if decodes]
# What the gguf package decodes by code of its own. Its NVFP4 is not in float32 throughout, and it has no Q1_0 or Q2_0.
BY_GGUF = [name for name in DECODED if name not in {"F32", "F16", "NVFP4", "Q1_0", "Q2_0"}]


def random_blocks(name: str, rows: int, n: int) -> np.ndarray:
    seed = [BLOCK_TYPES[name].ggml_id, rows, n]
    return np.random.default_rng(seed).integers(0, 256, (rows, BLOCK_TYPES[name].row_bytes(n)), np.uint8)


def assert_same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", DECODED)
def test_bits_equal_ggml(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    for rows, n in ((37, 256), (5, 768), (1, 2304)):
        blocks = random_blocks(name, rows, n)
        if name == "F32":
            assert np.array_equal(kvant.decode(blocks, name, n).view(np.uint8), blocks)
        else:
            assert_same_bits(kvant.decode(blocks, name, n), ggml_decode(blocks, BLOCK_TYPES[name], n))


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize("level", isa.levels())
def test_every_half_equals_ggml(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    halves = np.arange(65536, dtype="<u2").view(np.uint8)[None]
    expected = ggml_decode(halves, BLOCK_TYPES[name], 65536)
    assert_same_bits(kvant.decode(halves, name, 65536), expected)
    for length in (1, 3, 15, 17):  # tails shorter than a vector
        assert_same_bits(kvant.decode(halves[:, : 2 * length], name, length), expected[:, :length])


@pytest.mark.parametrize("name", [name for name in DECODED if name != "F32"])
def test_numpy_twin_equals_ggml(name: str) -> None:
    blocks = random_blocks(name, 7, 768)
    assert_same_bits(reference.decode(blocks, name, 768), ggml_decode(blocks, BLOCK_TYPES[name], 768))


@pytest.mark.parametrize("name", BY_GGUF)
def test_values_equal_the_gguf_package(name: str) -> None:
    blocks = random_blocks(name, 7, 768)
    with np.errstate(all="ignore"):
        expected = dequantize(blocks, gguf.GGMLQuantizationType[name]).astype(np.float32).reshape(7, 768)
    found = kvant.decode(blocks, name, 768)
    finite = np.isfinite(expected)  # where a scale is NaN, the two differ in which weights it reaches
    assert np.array_equal(found[finite], expected[finite])
