"""Stop texts: nothing of one is ever shown, and nothing else is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant.recipes.stops import Stops


def streamed(texts: list[str], pieces: list[str]) -> tuple[str, bool]:
    stops = Stops(texts)
    shown = "".join(map(stops.feed, pieces))
    return shown + stops.rest(), stops.found


@pytest.mark.parametrize(
    ("texts", "pieces", "shown"),
    [
        (["</s>"], ["Hello", "</", "s>", " more"], ("Hello", True)),
        (["</s>"], ["a<", "/b"], ("a</b", False)),
        (["</s>"], ["a</"], ("a</", False)),
        (["bb", "abc"], ["xab", "cbb"], ("x", True)),
        (["aab"], ["aaa", "b"], ("a", True)),
        ([""], ["a", "b"], ("ab", False)),
        ([], ["a"], ("a", False)),
    ],
)
def test_examples(texts: list[str], pieces: list[str], shown: tuple[str, bool]) -> None:
    assert streamed(texts, pieces) == shown


@settings(deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.text("abc", max_size=4), max_size=8))
def test_the_cut_does_not_depend_on_the_pieces(texts: list[str], pieces: list[str]) -> None:
    shown, found = streamed(texts, pieces)
    whole = "".join(pieces)
    assert whole.startswith(shown)
    assert not any(text in shown for text in texts)
    assert found == any(text in whole for text in texts)
    assert found or shown == whole
