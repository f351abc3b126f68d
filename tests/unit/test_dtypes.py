import gguf
import pytest

from kvant.dtypes import BLOCK_TYPES, BY_GGML_ID, PrecisionClass, block_type, precision_class
from kvant.errors import UnsupportedFormatError


@pytest.mark.parametrize("name", [n for n in BLOCK_TYPES if n != "Q2_0"])  # newer than the package
def test_ids_and_sizes_are_those_of_the_official_package(name: str) -> None:
    ours, theirs = BLOCK_TYPES[name], gguf.GGMLQuantizationType[name]
    assert ours.ggml_id == theirs.value
    assert (ours.block_length, ours.block_bytes) == gguf.GGML_QUANT_SIZES[theirs]


def test_no_two_types_share_an_id() -> None:
    assert len(BY_GGML_ID) == len(BLOCK_TYPES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("IQ2_XXS", PrecisionClass.ULTRA_LOW), ("Q2_K", PrecisionClass.ULTRA_LOW), ("IQ3_XXS", PrecisionClass.LOW),
     ("Q4_K", PrecisionClass.LOW), ("Q5_K", PrecisionClass.MID), ("Q8_0", PrecisionClass.MID),
     ("BF16", PrecisionClass.FULL)],
)  # fmt: skip
def test_precision_class_follows_from_bits_per_weight(name: str, expected: PrecisionClass) -> None:
    assert BLOCK_TYPES[name].precision_class is expected


def test_precision_class_of_a_mix() -> None:
    bpws = (2.99, 3.0, 4.99, 5.0, 9.0, 9.01)
    assert [precision_class(bpw).value for bpw in bpws] == ["ultra-low", "low", "low", "mid", "mid", "full"]


def test_row_bytes() -> None:
    assert block_type("q4_k").row_bytes(512) == 288


def test_an_unknown_type_is_refused_with_the_list() -> None:
    with pytest.raises(UnsupportedFormatError, match=r"'Q9_Z' is not known\. Use one of .*Q4_K"):
        block_type("Q9_Z")
