import io

import msgspec
import pytest

from kvant.errors import EngineError
from kvant.runtime import messages


def test_a_message_comes_back_as_it_was() -> None:
    stream = io.BytesIO()
    sent: list[messages.Request] = [
        messages.Open("a.gguf", 512, 2),
        messages.Logits(b"\x01\x00\x00\x00", 0, 0),
        messages.Speed(8, 8, 1),
    ]
    for message in sent:
        messages.write(stream, message)
    stream.seek(0)
    for message in sent:
        body = messages.read_body(stream)
        assert body is not None
        assert msgspec.msgpack.decode(body, type=messages.Request) == message
    assert messages.read_body(stream) is None


def test_a_cut_message_is_no_message() -> None:
    stream = io.BytesIO()
    messages.write(stream, messages.Wrote(3))
    assert messages.read_body(io.BytesIO(stream.getvalue()[:-1])) is None


def test_an_absurd_length_is_refused_before_reading() -> None:
    with pytest.raises(EngineError, match="4294967295 bytes breaks the limit"):
        messages.read_body(io.BytesIO(b"\xff\xff\xff\xff"))
