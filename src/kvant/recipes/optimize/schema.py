"""The recipe: a YAML document that says what `optimize` is to do, so that a search can be kept, shared and run again.

It holds what a `Request` holds, but for what belongs to one machine or one run; `fields.py` says where. Paths in it are
relative to its own directory.
"""

import os
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from kvant.documents import check_version, read_document
from kvant.errors import FormatError, ValueRangeError
from kvant.files import atomic_write
from kvant.recipes.measure.textname import file_named, name_of
from kvant.recipes.optimize.fields import FIELDS, Field, Kind
from kvant.recipes.optimize.request import Request, default_of, is_told, request_of, value_of

RECIPE_FILE = "recipe.yaml"
MAX_RECIPE_BYTES = 1 << 16
VERSION = 1
"""The field `recipe` of a recipe."""

LINE_ENDS = frozenset("\n\r\x85\u2028\u2029")
"""Characters that YAML ends a line at."""

_TYPES: dict[Kind, Any] = {
    Kind.BYTES: int, Kind.TIME: float, Kind.COUNT: int, Kind.NUMBER: float, Kind.FLAG: bool, Kind.WORD: str,
    Kind.LIST: tuple[str, ...], Kind.PATH: str, Kind.TEXT: str,
}  # fmt: skip
_STRICT: dict[str, Any] = {"frozen": True, "kw_only": True, "forbid_unknown_fields": True}


def read_recipe(path: Path, source: Path | None = None) -> Request:
    """Read what a recipe asks for.

    Args:
        path: The recipe.
        source: The model, in place of the recipe's.

    Raises:
        KvantError: It cannot be read.
        FormatError: It is no YAML, uses aliases, names a key twice, or holds a field or value that no recipe has.
        ValueRangeError: It names no model, and none is given.
    """
    import yaml

    data = read_document(path, "recipe", MAX_RECIPE_BYTES)
    try:
        read = _load(data)
        if isinstance(read, dict):
            check_version(read, "recipe", VERSION, subject=path)
        document = msgspec.convert(read, DOCUMENT)
        values = dict(_values(document, path.parent))
        asked = request_of({"source": Path(), **values})
    except FormatError:
        raise
    except (yaml.YAMLError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise FormatError(f"{path}: {problem} breaks the recipe format. See docs/how-to/rebuild.md.") from error
    if source is None and "source" not in values:
        raise ValueRangeError("recipe: names no source. Give the model on the command line: MODEL --recipe FILE.")
    return asked if source is None else msgspec.structs.replace(asked, source=source)


def write_recipe(path: Path, request: Request) -> None:
    """Write the recipe of a request; the file appears whole."""
    text = _dump(_document(request, path.parent))
    with atomic_write(path) as file:
        file.write(text.encode())


def _document(request: Request, directory: Path) -> dict[str, Any]:
    """Return a recipe's document, with paths relative to the directory that it will lie in."""
    document: dict[str, Any] = {"recipe": VERSION}
    for field in FIELDS:
        if field.place is None:
            continue
        *group, name = field.place.split(".")
        told = is_told(field, request)
        if group:
            document.setdefault(group[0], {})
        if told:
            place = document[group[0]] if group else document
            place[name] = _written(field, value_of(request, field.name), directory)
    return document


def _values(document: msgspec.Struct, directory: Path) -> Iterator[tuple[str, Any]]:
    """Yield the values that a document has, by the names of their fields."""
    for field in FIELDS:
        if field.place is None:
            continue
        *group, name = field.place.split(".")
        value = getattr(getattr(document, group[0]) if group else document, name)
        if value is not None:
            yield field.name, _read(field, value, directory)


def _written(field: Field, value: Any, directory: Path) -> Any:
    """Return a value as it stands in a recipe."""
    if field.kind is Kind.LIST:
        return list(value)
    if field.kind is Kind.PATH:
        return _relative(value, directory).as_posix()
    if field.kind is Kind.TEXT:
        file = file_named(value)
        return value if file is None else name_of(_relative(file, directory))
    return value


def _read(field: Field, value: Any, directory: Path) -> Any:
    """Return a recipe's value as it stands in a request."""
    if field.kind is Kind.PATH:
        return directory / value
    if field.kind is Kind.TEXT:
        file = file_named(value)
        return value if file is None else name_of(directory / file)
    return value


def _relative(path: Path, directory: Path) -> Path:
    """A path as seen from a directory; absolute on another drive, which only Windows has.

    `..` leaves the directory that a link leads to, not the one it lies in: where that makes a difference the links
    are followed.
    """
    try:
        seen = Path(os.path.relpath(path, directory))
        if os.path.realpath(directory / seen) == os.path.realpath(path):
            return seen
        return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(directory)))
    except ValueError:
        return path.absolute()


def _document_type() -> type[msgspec.Struct]:
    """Make the type that documents are checked against."""
    top: list[tuple[str, Any] | tuple[str, Any, Any]] = [("recipe", Literal[VERSION])]
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for field in FIELDS:
        if field.place is None:
            continue
        *group, name = field.place.split(".")
        entry = (name, _type(field), default_of(field))
        if group:
            groups.setdefault(group[0], []).append(entry)
        else:
            top.append(entry)
    for name, entries in groups.items():
        kind = msgspec.defstruct(name.title(), entries, **_STRICT)
        top.append((name, kind, kind()))
    return msgspec.defstruct("Recipe", top, **_STRICT)


def _type(field: Field) -> Any:
    """Return the type of a field in a document."""
    kind = _TYPES[field.kind]
    if field.kind is Kind.COUNT:
        kind = Annotated[kind, msgspec.Meta(ge=field.low, le=field.high)]
    return kind | None if default_of(field) is None else kind


def _dump(document: dict[str, Any]) -> str:
    """Write YAML. Line ends within a text are escaped: unquoted, or within single quotes, they are read as others."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def write(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if LINE_ENDS & set(text) else None)

    Dumper.add_representer(str, write)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _load(data: bytes) -> Any:
    """Read YAML of plain values, without aliases (they can stand for more than fits in memory) and double keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias (*name)")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value]
            if len(keys) != len(set(map(str, keys))):
                raise yaml.YAMLError(f"a key that is there twice among {', '.join(map(str, keys))[:200]}")
            return super().construct_mapping(node, deep)

    return yaml.load(data, Loader=Loader)  # noqa: S506 - a SafeLoader that refuses more


DOCUMENT = _document_type()
