"""Names of models: what is read, what is refused, and that no two meet in a directory."""

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import ModelNameError
from kvant.hub.names import DEFAULT_HOST, ModelName

DIGEST = "0123456789abcdef" * 4
LETTERS = "abzABZ019_-."


@st.composite
def names(draw: st.DrawFn) -> ModelName:
    """Names out of few letters, so that they often nearly collide."""

    def part() -> str:
        return draw(st.sampled_from(["a", "A", "a.b", "a-b", "_a", "x.gguf1", "latest", "library", "q4_K_M"]))

    host = draw(st.sampled_from([DEFAULT_HOST, "hf.co", "localhost:5000", "a"]))
    return ModelName(host=host, namespace=part(), model=part(), tag=part())


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("smollm2", f"{DEFAULT_HOST}/library/smollm2:latest"),
        ("smollm2:q4_K_M", f"{DEFAULT_HOST}/library/smollm2:q4_K_M"),
        ("me/smollm2:1.7b", f"{DEFAULT_HOST}/me/smollm2:1.7b"),
        ("hf.co/org/Model-GGUF:Q4_K_M", "hf.co/org/Model-GGUF:Q4_K_M"),
        ("localhost:5000/ns/m", "localhost:5000/ns/m:latest"),
    ],
)
def test_what_a_name_does_not_say_has_its_default(text: str, full: str) -> None:
    assert ModelName.parse(text).full == full


def test_a_digest_is_part_of_a_name_and_not_of_its_place() -> None:
    name = ModelName.parse(f"m:t@sha256:{DIGEST}")

    assert (name.digest, str(name), name.tagged) == (DIGEST, f"m:t@sha256:{DIGEST}", "m:t")
    assert name.undigested == ModelName(model="m", tag="t")


@given(names())
def test_the_shortest_text_means_the_same_name(name: ModelName) -> None:
    assert ModelName.parse(str(name)) == name
    assert ModelName.parse(name.full) == name
    assert ModelName.parse(name.tagged) == name


@given(names(), names())
def test_names_that_differ_by_more_than_case_never_meet_in_a_directory(a: ModelName, b: ModelName) -> None:
    if a.key == b.key:
        return
    files = [str(n.readable / f"{n.tag}.gguf").lower() for n in (a, b)]
    assert files[0] != files[1]
    assert not files[0].startswith(files[1] + "/")  # nor is one's file another's directory
    assert str(a.directory / a.tag).lower() != str(b.directory / b.tag).lower()


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "/", "@", "a/", "/a", "a:", ":a", "a//b", "a/b/c/d", "..", "a/..", "../a", "a/../b", ".a", "a.", "-a",
        "a..b", "a b", "a\x00", "a\n", "a\\b", "C:\\x", "ä", "a:b:c", "a:../x", "a:b/c:d", "a\u2215b", "١",
        "con", "NUL", "lpt1.x", "a:con", "aux/x", "m.gguf", "m:q.GGUF", "m.json", "x.partial", "m:t-00001-of-00002",
        "bad_host/a/b", "host:port/a/b", "host:123456/a/b", "-h/a/b", "h..x/a/b", "a@", "a@sha256:", "a@md5:0",
        "a@sha256:" + "0" * 63, "a@sha256:" + "A" * 64, "a@sha256:" + "0" * 65, "a@sha256:../../etc/passwd",
        "a" * 97, "a:" + "b" * 129, "a" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ModelNameError, match=r": .*\. [A-Z]"):
        ModelName.parse(text)


@given(st.text(alphabet=LETTERS + "/:@\\ \x00\n~$*?", max_size=40) | st.text(max_size=20))
def test_whatever_is_accepted_is_a_plain_relative_path_everywhere(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except ModelNameError:
        return
    for place in (name.directory / f"{name.tag}.json", name.readable / f"{name.tag}.gguf"):
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(str(place))
            assert not path.is_absolute()
            assert not path.drive
            assert path.parts == place.parts
            assert ".." not in path.parts
        assert str(place).isascii()
        assert str(place).isprintable()
