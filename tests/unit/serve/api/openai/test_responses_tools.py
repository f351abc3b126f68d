"""Tools of /v1/responses: names are told apart where they must be, and looked up without a search."""

import pytest

from kvant.errors import ApiError
from kvant.serve.api.openai.responses_tools import Offers
from kvant.serve.api.openai.responses_types import Tool
from kvant.serve.api.schemas import MAX_TOOLS


def _tool(name: str) -> Tool:
    return Tool(type="function", name=name)


def _space(name: str, *tools: Tool) -> Tool:
    return Tool(type="namespace", name=name, tools=list(tools))


def test_names_that_are_twice_have_their_namespaces_before_them() -> None:
    offers = Offers([_tool("a"), _space("x", _tool("b"), _tool("c")), _space("y", _tool("b"))])

    assert [made["function"]["name"] for made in offers.functions()] == ["a", "x__b", "c", "y__b"]
    assert offers.model_name("b", "x") == "x__b"
    assert offers.model_name("b", "y") == "y__b"
    assert offers.model_name("c", "x") == "c"
    assert offers.model_name("b", None) == "b"  # a call of a tool that is no longer offered


def test_too_many_tools_are_refused_wherever_they_stand() -> None:
    many = [_tool(f"t{i}") for i in range(MAX_TOOLS)]

    assert len(Offers(many).functions()) == MAX_TOOLS
    for tools in ([*many, _tool("one more")], [_space("x", *many), _tool("one more")]):
        with pytest.raises(ApiError, match=rf"^tools: {MAX_TOOLS + 1} tools exceed the limit of {MAX_TOOLS}\. Send"):
            Offers(tools)
