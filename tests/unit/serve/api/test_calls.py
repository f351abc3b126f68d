"""Tools and calls as clients write them."""

import pytest

from kvant.errors import ApiError
from kvant.serve.api.calls import Choice, allowed, arguments_text, choice_of, offered

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


@pytest.mark.parametrize("given", [None, "", " ", "null", {}])
def test_no_arguments_are_an_empty_object(given: object) -> None:
    assert arguments_text(given, "x") == "{}"


def test_arguments_that_are_an_object_become_text() -> None:
    assert arguments_text({"a": "é"}, "x") == '{"a":"é"}'
    assert arguments_text('{"a": 1}', "x") == '{"a": 1}'


@pytest.mark.parametrize("given", ["{", '{"a": 1', "[1]", '"x"', "1", '{"a": NaN}', "[" * 100_000])
def test_broken_arguments_name_their_place(given: str) -> None:
    with pytest.raises(ApiError, match=r"^messages\[1\]: ") as caught:
        arguments_text(given, "messages[1]")

    assert (caught.value.status, caught.value.param) == (400, "messages[1]")


@pytest.mark.parametrize(("given", "mode"), [(None, "auto"), ("", "auto"), ("any", "required"), ("none", "none")])
def test_words_for_a_choice(given: str | None, mode: str) -> None:
    assert choice_of(given) == Choice(mode=mode)


def test_a_tool_by_its_name_must_be_called() -> None:
    tools, mode = offered(TOOLS, choice_of("function", "g"))

    assert ([tool["function"]["name"] for tool in tools], mode) == (["g"], "required")
    assert offered(TOOLS, Choice(mode="none")) == ([], "auto")
    assert offered([], Choice()) == ([], "auto")


def test_allowed_tools() -> None:
    choice = allowed({"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}, {"name": "g"}, 3]})
    assert choice == Choice(mode="auto", names=frozenset({"f", "g"}))
    with pytest.raises(ApiError, match="allows no function"):
        allowed({"mode": "auto"})


@pytest.mark.parametrize("choice", [choice_of("tool", "h"), Choice(mode="required")])
def test_what_must_be_called_must_be_there(choice: Choice) -> None:
    with pytest.raises(ApiError, match="tool_choice"):
        offered(TOOLS if choice.names else [], choice)


@pytest.mark.parametrize("given", ["web_search", "function", 3])
def test_a_choice_that_nobody_knows(given: object) -> None:
    with pytest.raises(ApiError, match="neither auto"):
        choice_of(given)
