"""The shape of a JSON body: what is too deep or too much is told, texts hide nothing, one pass is enough."""

import tracemalloc

import pytest

from kvant.serve.bodies import fault


@pytest.mark.parametrize(
    ("body", "is_deep"),
    [
        (b"", False),
        (b"1", False),
        (b"[" * 5 + b"]" * 5, False),
        (b"[" * 6 + b"]" * 6, True),
        (b'{"a":{"b":[{"c":[1]}]}}', False),
        (b'{"a":{"b":[{"c":[[1]]}]}}', True),
        (b"[[],[],[],[],[],[],[],[]]", False),
        (b'["' + b"[" * 99 + b'"]', False),
        (b'["\\"' + b"[" * 99 + b'\\\\",' + b"[" * 5, True),
        (b'"[[[[[[[[[[\\', False),
        (b'"' + b"[" * 99, False),
        (b"[[[[[[", True),
    ],
)
def test_depth(body: bytes, is_deep: bool) -> None:
    told = fault(body, 5)

    assert (told is not None and "deeper than 5 levels" in told) == is_deep


@pytest.mark.parametrize("part", [b"[],", b'"",', b"{},", b'{"a":"b"},', b"]", b'"\\"",', b"1.5,", b"null,"])
def test_many_small_parts_are_too_much(part: bytes) -> None:
    assert fault(b"[" + part * 9, 5, max_parts=100) is None
    told = fault(b"[" + part * 101, 5, max_parts=100)
    assert told is not None
    assert "over 100 texts, brackets and commas" in told


@pytest.mark.parametrize("text", [b"a", b'\\"', b"\\\\", b"ab\\n", b"\\", b"["])
@pytest.mark.parametrize("end", [b'"]', b""])
def test_long_texts_cost_no_memory(text: bytes, end: bytes) -> None:
    body = b"[]" * 6 + b'["' + text * (1 << 19) + end

    tracemalloc.start()
    assert fault(body, 5) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 14
