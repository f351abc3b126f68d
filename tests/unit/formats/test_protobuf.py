import pytest

from kvant.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, WireError, fields

NUMBER = b"\x08\x96\x01"  # field 1: 150
TEXT = b"\x12\x02hi"  # field 2
FIXED = b"\x1d" + bytes(4) + b"\x21" + bytes(8)  # fields 3 and 4


def test_fields_of_a_message() -> None:
    data = b"before" + NUMBER + TEXT + FIXED + b"behind"
    found = list(fields(data, 6, len(data) - 6))
    assert [(number, wire, value) for number, wire, value, *_ in found] == [
        (1, VARINT, 150), (2, BYTES, 0), (3, FIXED32, 0), (4, FIXED64, 0),
    ]  # fmt: skip
    assert data[found[1][3] : found[1][4]] == b"hi"


@pytest.mark.parametrize("whole", [NUMBER, TEXT, FIXED[:5], FIXED[5:]])
def test_a_message_that_ends_in_a_field(whole: bytes) -> None:
    assert len(list(fields(whole, 0, len(whole)))) == 1
    for end in range(1, len(whole)):
        with pytest.raises(WireError):
            list(fields(whole, 0, end))


@pytest.mark.parametrize(("data", "at"), [(b"\x0b", 1), (b"\x08" + b"\xff" * 11, 1), (b"\x12\xff\xff\x03", 4)])
def test_what_is_no_message_is_told_with_its_place(data: bytes, at: int) -> None:
    with pytest.raises(WireError, match=f"at byte {at}$") as caught:
        list(fields(data, 0, len(data)))
    assert caught.value.at == at
