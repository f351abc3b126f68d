from pathlib import Path

import pytest

from kvant.errors import EngineError
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.sample import (
    Sample,
    Samples,
    as_lines,
    continuation,
    generate,
    kept_continuation,
    plain_text,
)
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    out = directory / "tiny.gguf"
    convert(write_tiny_model("llama", directory / "m"), out, to="gguf", type="Q8_0")
    return out


def test_the_same_file_says_the_same_and_no_more_than_asked(tiny: Path) -> None:
    long, short = (generate(tiny, threads=1, prompt="Once", tokens=n) for n in (8, 3))
    assert long == generate(tiny, threads=1, prompt="Once", tokens=8)
    assert long.startswith(short)


def test_what_was_said_is_kept(tiny: Path) -> None:
    assert kept_continuation("a") is None
    said = continuation(tiny, "a", threads=1)
    assert kept_continuation("a") == said == continuation(tiny.with_name("absent"), "a", threads=1)
    with pytest.raises(EngineError):
        continuation(tiny.with_name("absent.gguf"), "b", threads=1)


def test_nothing_but_plain_text_is_left() -> None:
    hostile = "a\x1b[31mb\x00\u202ec\u2028d\r\n\te\x9b</dd><script>".encode() + b"\xff"
    assert plain_text(hostile) == "a[31mbcd   e</dd><script>\ufffd"


def test_lines_for_a_terminal_name_who_said_what() -> None:
    samples = Samples(prompt="One", tokens=3, original=" two", variants=(Sample(name="Q2_K", text=" "),))
    assert as_lines(samples) == ['"One ..." continued:', "  original: two", "  Q2_K: (ends)"]
