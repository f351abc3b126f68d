"""The options of `kvant optimize` are those of the table that recipes and printed commands follow, too."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from kvant.cli.main import app
from kvant.errors import ValueRangeError
from kvant.recipes.goal import Budget
from kvant.recipes.optimize.fields import FIELDS, LARGEST, Field, Kind
from kvant.recipes.optimize.request import LIMITS, Request, default_of, request_of

NOT_ASKED = {"--recipe", "--keep", "--json", "--help"}
"""What is no part of a request: where it is written, and what is done with what was found."""

PARAMETERS: dict[str, Any] = {
    option: parameter
    for parameter in vars(typer.main.get_command(app))["commands"]["optimize"].params
    for option in parameter.opts
    if option != "-o"
}
NAMES = [field.name for field in FIELDS]


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    assert set(PARAMETERS) - NOT_ASKED - {"-h"} == {field.option for field in FIELDS}


def test_every_field_of_a_request_is_in_the_table() -> None:
    asked = {field.name for field in msgspec.structs.fields(Request)} - {"budget"}
    limits = {LIMITS + field.name for field in msgspec.structs.fields(Budget)}
    assert set(NAMES) == asked | limits
    assert len(NAMES) == len(set(NAMES))


def test_places_in_a_recipe_are_distinct() -> None:
    places = [field.place for field in FIELDS if field.place]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("field", FIELDS, ids=NAMES)
def test_defaults_and_bounds_are_those_of_the_table(field: Field) -> None:
    parameter = PARAMETERS[field.option]
    default = parameter.default
    if field.kind is Kind.LIST:
        default = tuple(default.split(",")) if default else ()
    assert (default or None) == (default_of(field) or None)
    if field.kind is Kind.COUNT:
        assert parameter.type.min == field.low
        assert (parameter.type.max or LARGEST) == field.high


@pytest.mark.parametrize(
    "field", [f for f in FIELDS if f.kind in (Kind.BYTES, Kind.NUMBER, Kind.TIME)], ids=lambda f: f.name
)
def test_a_limit_that_nothing_keeps_is_refused_by_the_name_of_its_option(field: Field) -> None:
    with pytest.raises(ValueRangeError, match=f"^{field.option}: -1 "):
        request_of({"source": Path(), field.name: -1})
