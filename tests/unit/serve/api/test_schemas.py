"""Schemas of clients: what is taken out is named, what is too large refused, what remains means what it should."""

import json
import tracemalloc
from typing import Any

import jsonschema_rs
import pytest

from kvant.errors import ApiError
from kvant.generate.grammars import lark
from kvant.runtime.grammar import Matcher, gbnf_error, lark_error
from kvant.serve.api.grammars import depth_of, without_tokens
from kvant.serve.api.patterns import translated
from kvant.serve.api.schemas import (
    ENFORCED,
    FORMATS,
    MAX_NODES,
    MAX_NOTES,
    MAX_VALUES,
    UNENFORCED,
    Budget,
    bound,
    loosely,
)  # fmt: skip


def takes(schema: Any, value: Any) -> bool:
    """Whether the engine's grammar of a schema lets a value through, written without white space."""
    made = bound(schema, "format")
    assert made.unenforced == []
    with Matcher(lark(made.schema)) as matcher:
        assert matcher.error is None
        return matcher.accepts(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


# Schema, values that are right by it, values that are wrong; by keyword, in the order of JSON Schema's validation.
RULES: list[tuple[str, Any, list[Any], list[Any]]] = [
    ("type", {"type": "integer"}, [0, -7, 12345678901234567890], ["1", 1.5, None, [], {}, True]),
    ("type of several", {"type": ["string", "null"]}, ["", "é", None], [0, False, []]),
    ("enum", {"enum": [1, "a", None, [2], {"b": 3}]}, [1, "a", None, [2], {"b": 3}], [2, "A", "ab", [], {"b": 4}]),
    ("enum with a type", {"type": "string", "enum": ["a", 1]}, ["a"], [1, "b"]),
    ("const", {"const": 'a "b" \\ c\n'}, ['a "b" \\ c\n'], ["a", 'a "b" \\ c']),
    ("minimum", {"type": "integer", "minimum": -3}, [-3, 0, 99], [-4, -1000]),
    ("maximum", {"type": "number", "maximum": 1}, [1, 0.999, -5.25], [1.001, 2, 100]),
    ("exclusive bounds", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5, 0.001], [0, 1, -1]),
    ("multipleOf", {"type": "integer", "multipleOf": 7}, [0, 7, 14, 700], [1, 6, 701]),
    ("minLength", {"type": "string", "minLength": 2}, ["ab", "éü", "\n\n"], ["", "a", "é"]),
    ("maxLength", {"type": "string", "maxLength": 2}, ["", "é", "ab"], ["abc", "ééé"]),
    ("pattern, anchored", {"type": "string", "pattern": "^[0-9]{2}$"}, ["12"], ["1", "123", "a12", "١٢"]),
    ("pattern, anywhere", {"type": "string", "pattern": "[0-9]{2}"}, ["12", "a12b", "1234"], ["1", "a", "1a2"]),
    ("pattern, digits", {"type": "string", "pattern": r"^\d+$"}, ["0", "42"], ["", "x", "٣"]),
    ("pattern, words", {"type": "string", "pattern": r"^\w+\!$"}, ["a_1!"], ["é!", "a", "!"]),
    ("pattern, no space", {"type": "string", "pattern": r"^\S+$"}, ["a-b", "é"], ["", "a b", "\u2028", "\ufeff"]),
    ("pattern, any", {"type": "string", "pattern": "^.$"}, ["a", "é"], ["", "ab", "\n"]),
    ("pattern, choices", {"type": "string", "pattern": "^(?:a|b{2,3})?$"}, ["", "a", "bbb"], ["b", "ab"]),
    ("items", {"type": "array", "items": {"type": "boolean"}}, [[], [True, False]], [[1], [True, "a"], {}]),
    ("prefixItems", {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 1},
     [[1], [1, 2]], [[2], [1, 1]]),
    ("items of a number", {"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 2}, [[1], [1, 1]],
     [[], [1, 1, 1]]),
    ("properties", {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, [{"a": None}],
     [{}, {"a": 1}, {"b": None}]),
    ("additionalProperties", {"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"x": 1}],
     [{"x": "1"}, {"x": None}]),
    ("patternProperties", {"type": "object", "patternProperties": {"^n": {"type": "integer"}},
     "additionalProperties": False}, [{}, {"n1": 1}], [{"m": 1}, {"n": "1"}]),
    ("minProperties", {"type": "object", "minProperties": 1, "additionalProperties": {"const": 1}}, [{"a": 1}], [{}]),
    ("anyOf", {"anyOf": [{"const": 1}, {"type": "string"}]}, [1, "a"], [2, None]),
    ("oneOf of different types", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [1.5, None]),
    ("allOf", {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, [2, 3, 4], [1, 5, "a"]),
    ("allOf of objects", {"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
     {"properties": {"b": {"const": 2}}, "required": ["b"]}], "type": "object"}, [{"a": 1, "b": 2}], [{"a": 1}]),
    ("$ref", {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}},
     [{}, {"n": {}}, {"n": {"n": {}}}], [{"n": 1}, 1]),
    ("date", {"type": "string", "format": "date"}, ["2024-02-29", "1999-12-31"],
     ["2024-13-01", "2023-02-29", "1900-02-29", "x"]),
    ("date-time", {"type": "string", "format": "date-time"}, ["2024-02-29T23:59:59.5Z", "1999-01-31t00:00:00+01:00"],
     ["2023-02-29T00:00:00Z", "2024-02-29", "2024-01-01T24:00:00Z"]),
    ("email", {"type": "string", "format": "email"}, ["a@b.cd"], ["", "a", "a@", "@b"]),
    ("uuid", {"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567", ""]),
    ("ipv4", {"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.0.0.1", "1.2.3"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_answers_are_held_to_what_a_schema_means(schema: Any, right: list[Any], wrong: list[Any]) -> None:
    judge = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    assert [judge.is_valid(value) for value in right + wrong] == [True] * len(right) + [False] * len(wrong)

    assert [value for value in right if not takes(schema, value)] == []
    assert [value for value in wrong if takes(schema, value)] == []


def test_every_format_that_is_claimed_is_one_of_the_engines() -> None:
    for name in FORMATS:
        assert lark_error(lark({"type": "string", "format": name})) is None
    for other in ("iri", 5, None, ["date"], {"date": 1}):
        assert bound({"format": other}, "format").unenforced == ["format"]


@pytest.mark.parametrize("keyword", sorted(UNENFORCED - {"then", "else", "minContains", "maxContains"}))
def test_what_is_not_enforced_is_named(keyword: str) -> None:
    value = {"not": {"const": 1}, "uniqueItems": True, "dependentRequired": {"a": ["b"]}}.get(keyword, {"const": 1})
    schema = {"properties": {"s": {keyword: value, "contains": True, "then": False}}}

    assert f"properties.s.{keyword}" in bound(schema, "format").unenforced
    assert keyword not in bound(schema, "format").schema["properties"]["s"]


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": False}, {"if": {"const": 1}}, {"then": False}, {"minContains": 2}, {"propertyNames": {}},
        {"title": "a", "description": "b", "default": 1, "examples": [1], "deprecated": True, "x-order": 3},
    ],
)  # fmt: skip
def test_what_says_nothing_is_passed_over(schema: Any) -> None:
    made = bound(schema, "format")
    assert made.unenforced == []
    assert lark_error(lark(made.schema)) is None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"enum": list(range(MAX_VALUES + 1))}, "values of `enum` and `const` are over 20000"),
        ({"const": [[0] * (MAX_VALUES + 1)]}, "const: the values of"),
        ({"enum": ["x" * 100] * 6000}, "bytes exceed the limit of 524288 for all schemas together"),
        ({"type": "string", "minLength": 10**9}, "minLength: 1000000000 exceeds the limit"),
        ({"type": "array", "minItems": -1}, "minItems: -1 is not a count"),
        ({"properties": {f"p{i}": {"anyOf": [{}] * 9} for i in range(1100)}}, "more than 10000 schemas or 64 levels"),
        ({"properties": [1]}, "properties: is not an object of schemas"),
        ({"anyOf": {"a": 1}}, "anyOf: is not an array of schemas"),
        ({"items": 3}, "items: '3' is not a JSON schema"),
        ({"pattern": 1}, "pattern: is not a text"),
    ],
)
def test_what_is_too_large_or_no_schema_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        bound(schema, "format")


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"items": schema}
    with pytest.raises(ApiError, match="64 levels"):
        bound(schema, "format")


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)b", "(?<=a)b", "(a)\\1", "\\bword", "*", "^*$", "a**", "a{2", "{3}", "[^]", "[[a]]", "[a&&b]", "(", ")",
        "a\\", "(" * 40 + "a" + ")" * 40, "[\\D]", "\\u12", "(?<n>a)", "\\p{L}",
    ],
)  # fmt: skip
def test_patterns_that_are_not_understood_are_named(pattern: str) -> None:
    assert translated(pattern) is None
    assert bound({"type": "string", "pattern": pattern}, "format").unenforced == ["pattern"]


def test_a_point_is_no_end_of_a_line_as_in_ecma() -> None:
    assert not any(takes({"type": "string", "pattern": "^.$"}, end) for end in ("\n", "\r", "\u2028", "\u2029"))


def test_patterns_that_cost_too_much_are_named() -> None:
    for pattern in ("((.{1,30}){1,30}){1,30}", "(ab{1,90}){1,90}", "a{99999}", "(?:x" * 20 + "{9})" * 20, "a" * 5000):
        assert bound({"type": "string", "pattern": pattern}, "format").unenforced == ["pattern"]
    assert bound({"type": "number", "multipleOf": 1_000_003}, "format").unenforced == ["multipleOf"]
    assert bound({"type": "number", "multipleOf": 0.01}, "format").unenforced == []


def test_what_would_be_dropped_half_way_is_found_before() -> None:
    many = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    assert lark_error(lark(bound(many, "format").schema)) == "it is too costly to follow"
    few = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}
    assert lark_error(lark(bound(few, "format").schema)) is None
    assert lark_error(lark({"enum": [f"value {i}" for i in range(2000)]})) is None


def test_objects_are_closed_where_nothing_else_may_add_to_them() -> None:
    inner = {"type": "object", "properties": {"a": {}}}
    assert bound(inner, "f").schema["additionalProperties"] is False
    assert bound(inner | {"required": ["a", "b"]}, "f").schema.get("additionalProperties") is None
    assert bound(inner | {"additionalProperties": True}, "f").schema["additionalProperties"] is True
    assert "additionalProperties" not in json.dumps(bound({"allOf": [inner, {"properties": {"b": {}}}]}, "f").schema)


def test_a_schema_inside_another_one_keeps_its_references() -> None:
    schema = {"$id": "http://x/y", "$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#"}}}}
    made = bound(schema, "f", root="/$defs/0").schema
    assert made == {"$ref": "#/$defs/0/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/0"}}}}


def test_what_a_reference_names_elsewhere_is_a_schema_like_others() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}, "uniqueItems": True}
    schema = {
        "$ref": "#/components/schemas/a~1b%20c",
        "components": {"schemas": {"a/b c": inner, "b": inner}, "other": {"enum": [0] * (MAX_VALUES + 1)}},
        "example": {"enum": [0] * (MAX_VALUES + 1)},
    }
    made = bound(schema, "f")

    assert made.unenforced == ["components.schemas.a/b c.uniqueItems"]
    kept = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    assert made.schema["components"] == {"schemas": {"a/b c": kept}}
    assert "example" not in made.schema
    with pytest.raises(ApiError, match=r"components\.a\.enum: the values"):
        bound({"$ref": "#/components/a", "components": {"a": {"enum": [0] * (MAX_VALUES + 1)}}}, "f")
    with pytest.raises(ApiError, match="more than 10000 schemas"):
        bound({"anyOf": [{"$ref": "#" + f"/{i}" * 2000} for i in range(9)]}, "f")


def test_all_schemas_of_a_request_have_one_budget() -> None:
    for schema, said in (
        ({"title": "x" * (1 << 18)}, "bytes exceed"), ({"enum": [0] * (MAX_VALUES // 2 + 1)}, "values"),
        ({"anyOf": [{}] * (MAX_NODES // 2)}, "schemas"),
    ):  # fmt: skip
        budget = Budget()
        bound(schema, "tools[0]", budget=budget)
        with pytest.raises(ApiError, match=rf"^tools\[1\].*{said}"):
            bound(schema, "tools[1]", budget=budget)


def test_places_are_told_briefly_and_cost_nothing_before() -> None:
    deep: Any = {f"p{i}": {"uniqueItems": True} for i in range(5000)}
    for _ in range(60):
        deep = {"x" * 4000: {"properties": deep}}
    tracemalloc.start()
    told = bound({"properties": deep}, "f").unenforced
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(told) == MAX_NOTES
    assert {len(place) for place in told} == {200}
    assert peak < 1 << 24


def test_what_the_engines_own_grammar_is_loose_about() -> None:
    schema = {"properties": {
        "n": {"type": "number", "minimum": 1}, "i": {"type": "integer", "minimum": 1}, "p": {"pattern": "a"},
        "q": {"pattern": "^a$"}, "f": {"format": "email"}, "d": {"format": "date"}, "minimum": {"type": "string"},
    }}  # fmt: skip
    assert loosely(schema) == ["format", "minimum", "pattern"]
    assert loosely({"properties": {"i": {"type": "integer", "minimum": 1}}}) == []


def test_no_keyword_is_in_both_tables() -> None:
    assert not ENFORCED & UNENFORCED


def test_grammars_are_measured_and_tried() -> None:
    assert depth_of('root ::= "((((" [((((] # ((((\n ("a" ("b"))') == 2
    assert depth_of("(" * 60_000) == 60_000
    assert depth_of("<" * 65_536 + "(") == 1
    assert without_tokens('root ::= <think> "<x>" <[12]>') == 'root ::= "x" "<x>" "x"'
    assert gbnf_error('root ::= "a" | [b-c]{2}') is None
    assert "GBNF" in str(gbnf_error('other ::= "a"'))
    assert "GBNF" in str(gbnf_error('root ::= root "a"'))
