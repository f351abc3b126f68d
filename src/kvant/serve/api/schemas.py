"""JSON schemas that clients send: how large they may be, and what of them an answer is held to.

The engine's grammar (llguidance) follows most of JSON Schema; a keyword that it does not know would make it drop the
whole schema in silence. So the keywords that it follows are one table here; the others are taken out and named, for the
answer to tell. What remains is tried before the engine gets it; see `formats.py`.

Sources: JSON Schema 2020-12, core and validation; llguidance's docs/json_schema.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import msgspec

from kvant.errors import ApiError
from kvant.serve.api.patterns import translated

MAX_TOOLS = 512
MAX_BYTES = 1 << 19
MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_VALUES = 20_000
MAX_NOTES = 32
"""Places that are told of a schema: as many as an answer's header holds."""

MAX_PATH_CHARACTERS = 200
MAX_COUNT = 10_000
"""Largest `minItems`, `maxLength` and the like that is enforced."""

MAX_FACTOR = 10_000
"""Largest `multipleOf` that is enforced, as a whole number of its last digit's."""

MAX_PATTERN_CHARACTERS = 4096
MAX_PATTERN_STATES = 4096
"""Characters of a pattern with its repetitions written out."""

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)  # fmt: skip
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLE = frozenset({"additionalProperties", "additionalItems", "items"})
_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_PLAIN = frozenset(
    {
        "type", "const", "enum", "required", "$ref", "$schema", "$id", "$anchor", "id", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    }
)  # fmt: skip
ENFORCED = _MAPS | _LISTS | _SINGLE | _COUNTS | _PLAIN | {"pattern", "format"}
"""Keywords that an answer is held to, with those that only name schemas for them."""

UNENFORCED = frozenset(
    {
        "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames",
        "contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
        "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip
"""Keywords that say what is valid, and that an answer is not held to. Any other keyword is a remark."""

_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = f"(?:[0-9]{{4}}-(?:0[13-9]|1[0-2])-|[0-9]{{4}}-02-(?:[01]|2[0-8])|{_LEAP}-02-29)"
_SHARPER = {
    "date": f"^{_DATE}",
    "date-time": f"^{_DATE}[0-9]*[tT][0-9]{{2}}:[0-9]{{2}}:[0-5]",
    "time": "^[0-9]{2}:[0-9]{2}:[0-5]",
}
"""What the engine's own patterns of formats lack: leap years, and leap seconds, which are right once in years."""

_NAMES = frozenset({"$schema", "$id", "id"})
_COMBINING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "not"})
_NO_EFFECT: tuple[tuple[str, Any], ...] = (
    ("uniqueItems", False), ("unevaluatedItems", True), ("unevaluatedProperties", True), ("propertyNames", True),
    ("propertyNames", {}), ("dependentRequired", {}), ("dependentSchemas", {}), ("dependencies", {}),
)  # fmt: skip


@dataclass(slots=True)
class Schema:
    """A schema that an answer can be held to.

    Attributes:
        schema: What the engine is given; a boolean schema is one too.
        unenforced: Paths of keywords that it lacks, as `properties.name.uniqueItems`.
    """

    schema: Any
    unenforced: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Budget:
    """What all schemas of a request have taken together, of `MAX_BYTES`, `MAX_NODES` and `MAX_VALUES`."""

    n_bytes: int = 0
    n_nodes: int = 0
    n_values: int = 0


_Path = tuple["_Path", str] | None
"""A place in a schema: the one around it and the step from there. Made into text only where it is told."""


def check_tools(n: int) -> None:
    """Refuse more tools than a request may have.

    Raises:
        ApiError: There are more.
    """
    if n > MAX_TOOLS:
        raise ApiError(f"tools: {n} tools exceed the limit of {MAX_TOOLS}. Send fewer.", param="tools")


def bound(schema: Any, where: str, *, root: str = "", patterns: bool = True, budget: Budget | None = None) -> Schema:
    """Check a schema's size and take out what an answer cannot be held to.

    Where an object's properties are named and nothing is said of others, others are left out: JSON Schema allows them,
    and a weak model would make them up without end.

    Args:
        schema: As the client sent it.
        where: The field it came in, for errors.
        root: Where in a larger schema it will stand, as a JSON pointer: its references are turned there.
        patterns: Whether answers are held to its patterns.
        budget: What other schemas of the same request took already; this one's share is added.

    Raises:
        ApiError: It is too large, alone or with the others, or not a schema.
    """
    budget = Budget() if budget is None else budget
    budget.n_bytes += len(msgspec.json.encode(schema))
    if budget.n_bytes > MAX_BYTES:
        raise _refusal(
            where, f"{budget.n_bytes} bytes exceed the limit of {MAX_BYTES} for all schemas together. Send less"
        )
    closes = not any(_joins(node) for node in _nodes(schema))
    walk = _Walk(where, root, budget, closes=closes, patterns=patterns)
    return Schema(walk.visit(schema, None, 0, walk.references(schema)), walk.unenforced)


def _refusal(where: str, what: str) -> ApiError:
    return ApiError(f"{where}: {what}.", code="invalid_schema", param=where)


def _nodes(schema: Any) -> Iterator[Any]:
    """Yield every object and array in a schema."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, dict):
            waiting += [value for value in node.values() if isinstance(value, dict | list)]
        elif isinstance(node, list):
            waiting += [value for value in node if isinstance(value, dict | list)]


def _joins(node: Any) -> bool:
    """Whether a schema says of one object what several schemas say together, so that none may be closed alone."""
    if not isinstance(node, dict):
        return False
    together = _COMBINING & node.keys()
    return "allOf" in node or len(together) > 1 or bool(together and node.keys() & (_MAPS - {"$defs", "definitions"}))


class _Targets(dict[str, "_Targets"]):
    """The places in a schema that its references lead to: the steps from one node, and what is below each."""

    is_one = False


_NONE = _Targets()


class _Walk:
    """Copies one schema; see `bound`."""

    def __init__(self, where: str, root: str, budget: Budget, *, closes: bool, patterns: bool) -> None:
        self._where, self._root, self._closes, self._patterns = where, root, closes, patterns
        self._budget = budget
        self.unenforced: list[str] = []

    def references(self, schema: Any) -> _Targets:
        """Return where the references of a schema lead, as far as those are places in it."""
        found = _Targets()
        for node in _nodes(schema):
            to = node.get("$ref") if isinstance(node, dict) else None
            if not isinstance(to, str) or "#/" not in to:
                continue
            place = found
            for step in to.partition("#/")[2].split("/"):
                name = unquote(step).replace("~1", "/").replace("~0", "~")
                if name not in place:
                    self._count_node(None, 0)
                    place[name] = _Targets()
                place = place[name]
            place.is_one = True
        return found

    def visit(self, node: Any, path: _Path, depth: int, targets: _Targets) -> Any:
        """Return a schema without what is not enforced."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise self._fault(path, f"{_shown(node)!r} is not a JSON schema. Send an object, true or false")
        self._count_node(path, depth)
        made: dict[str, Any] = {}
        for key, value in node.items():
            here = (path, key)
            if key in UNENFORCED:
                if not _has_no_effect(node, key, value):
                    self._note(here)
            elif key not in ENFORCED:
                if key in targets and isinstance(value, dict):
                    made[key] = self._place(value, here, depth + 1, targets[key])
            elif self._root and key in _NAMES:
                continue  # it would make the schema a document of its own, in which the references lead elsewhere
            elif key == "pattern":
                if (pattern := self._pattern(value, here)) is not None:
                    made[key] = pattern
            elif self._follows(key, value, here):
                made[key] = self._value(key, value, here, depth, targets.get(key, _NONE))
        if "properties" in made and "patternProperties" in made:  # the engine takes the first that fits, not both
            del made["patternProperties"]
            self._note((path, "patternProperties"))
        if made.get("format") in _SHARPER:
            made["allOf"] = [*made.get("allOf", ()), {"pattern": _SHARPER[made["format"]]}]
        if self._closes and _is_open(made):
            made["additionalProperties"] = False
        return made

    def _place(self, value: Any, path: _Path, depth: int, targets: _Targets) -> Any:
        """Return what references lead to in something that is no schema itself, and nothing else of it."""
        if targets.is_one or not isinstance(value, dict):
            return self.visit(value, path, depth, targets)
        self._count_node(path, depth)
        return {
            name: self._place(value[name], (path, name), depth + 1, below)
            for name, below in targets.items() if name in value
        }  # fmt: skip

    def _value(self, key: str, value: Any, path: _Path, depth: int, targets: _Targets) -> Any:
        if key in _MAPS:
            if not isinstance(value, dict):
                raise self._fault(path, "is not an object of schemas. Correct it")
            if key == "patternProperties":
                patterns = {name: self._pattern(name, path) for name in value}
                value = {patterns[name]: item for name, item in value.items() if patterns[name] is not None}
            return {
                name: self.visit(item, (path, name), depth + 1, targets.get(name, _NONE))
                for name, item in value.items()
            }
        if key in _LISTS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise self._fault(path, "is not an array of schemas. Correct it")
            return [
                self.visit(item, (path, f"[{i}]"), depth + 1, targets.get(str(i), _NONE))
                for i, item in enumerate(value)
            ]
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            return f"#{self._root}{value[1:]}"
        return self.visit(value, path, depth + 1, targets) if key in _SINGLE else value

    def _count_node(self, path: _Path, depth: int) -> None:
        self._budget.n_nodes += 1
        if depth > MAX_DEPTH or self._budget.n_nodes > MAX_NODES:
            raise self._fault(path, f"more than {MAX_NODES} schemas or {MAX_DEPTH} levels. Send a smaller schema")

    def _follows(self, key: str, value: Any, path: _Path) -> bool:
        """Tell whether the engine can follow a keyword with this value; what cannot be is noted.

        Raises:
            ApiError: It is beyond what any answer could do, or of the wrong kind.
        """
        if key in _COUNTS:
            return self._follows_count(key, value, path)
        if key == "format":
            return self._noted(path, is_followed=isinstance(value, str) and value in FORMATS)
        if key == "multipleOf":
            return self._noted(path, is_followed=_is_small(value))
        if key in ("enum", "const") and isinstance(value, dict | list):
            self._budget.n_values += sum(map(len, _nodes(value)))
            if self._budget.n_values > MAX_VALUES:
                raise self._fault(path, f"the values of `enum` and `const` are over {MAX_VALUES} in all. Send fewer")
        return True

    def _pattern(self, pattern: Any, path: _Path) -> str | None:
        """Return a pattern for the engine; None, and a note, for one that it cannot be held to."""
        if not isinstance(pattern, str):
            raise self._fault(path, "is not a text. Correct it")
        found = translated(pattern) if self._patterns and len(pattern) <= MAX_PATTERN_CHARACTERS else None
        self._noted(path, is_followed=found is not None and found[1] <= MAX_PATTERN_STATES)
        return found[0] if found is not None and found[1] <= MAX_PATTERN_STATES else None

    def _follows_count(self, key: str, value: Any, path: _Path) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise self._fault(path, f"{_shown(value)} is not a count. Correct it")
        if key.startswith("min") and value > MAX_COUNT:
            raise self._fault(path, f"{value} exceeds the limit of {MAX_COUNT}. Ask for less")
        return self._noted(path, is_followed=value <= MAX_COUNT)

    def _note(self, path: _Path) -> None:
        if len(self.unenforced) < MAX_NOTES:
            self.unenforced.append(_text(path))

    def _noted(self, path: _Path, *, is_followed: bool) -> bool:
        if not is_followed:
            self._note(path)
        return is_followed

    def _fault(self, path: _Path, what: str) -> ApiError:
        return _refusal(self._where, f"{_text(path)}: {what}" if path else what)


def _text(path: _Path) -> str:
    """Return a place as `properties.name[2].pattern`, cut at its end."""
    steps: list[str] = []
    while path is not None:
        path, step = path
        step = step[:MAX_PATH_CHARACTERS]
        steps.append(step if step.startswith("[") else f".{step}")
    return "".join(reversed(steps)).lstrip(".")[:MAX_PATH_CHARACTERS]


def _shown(value: Any) -> str:
    """Return the beginning of a value; of one that holds others, only what kind it is."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else str(value)[:40]


def _has_no_effect(node: dict[str, Any], key: str, value: Any) -> bool:
    """Whether an unenforced keyword says nothing: any answer is right by it."""
    if key in ("then", "else"):
        return "if" not in node
    if key == "if":
        return "then" not in node and "else" not in node
    if key in ("minContains", "maxContains"):
        return "contains" not in node
    return any((key == name and value is effect) or value == effect == {} for name, effect in _NO_EFFECT if key == name)


def _is_small(value: Any) -> bool:
    """Whether a factor is one whose multiples are told apart at little cost."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 < value < 1e9:
        return False
    digits = f"{value:.9f}".rstrip("0").replace(".", "").lstrip("0")
    return int(digits) <= MAX_FACTOR


def _is_open(node: dict[str, Any]) -> bool:
    """Whether a schema names properties, all that it requires are among them, and it says nothing of others."""
    named = node.get("properties")
    if not isinstance(named, dict) or not named:
        return False
    if {"additionalProperties", "patternProperties"} & node.keys() or node.get("minProperties", 0) > len(named):
        return False
    required = node.get("required", [])
    return isinstance(required, list) and all(isinstance(name, str) and name in named for name in required)


def loosely(schema: Any) -> list[str]:
    """Return the keywords of a tool's schema that the engine's own grammar does not hold a call to.

    Where a model may call a tool and need not, the engine's own conversion of schemas is used, which follows less.

    Source: llama.cpp's json-schema-to-grammar.
    """
    found: set[str] = set()
    for node in _nodes(schema):
        if not isinstance(node, dict):
            continue
        found |= _LOOSE & node.keys()
        if node.get("type") != "integer":
            found |= {key for key in _RANGES & node.keys() if not isinstance(node[key], dict)}
        pattern = node.get("pattern")
        if isinstance(pattern, str) and not (pattern.startswith("^") and pattern.endswith("$")):
            found.add("pattern")
        if isinstance(node.get("format"), str) and node["format"] not in _LOOSE_FORMATS:
            found.add("format")
    return sorted(found)


_LOOSE = frozenset({"multipleOf", "minProperties", "maxProperties", "patternProperties"})
_LOOSE_FORMATS = frozenset({"date", "time", "date-time", "uuid"})
_RANGES = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
