"""Every regular expression of the package and its page takes linear time, told from its structure: `ambiguity.py`.

All calls of `re` are found in the source. A pattern that is made of values known when its module is loaded is put
together as there; for one that is made later, the table says how, or why it is harmless.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import kvant
from ambiguity import ambiguity
from kvant.formats.huggingface import checkpoint
from kvant.runtime.plaintext import ALWAYS_CONTROL, Controls

ROOT = Path(inspect.getfile(kvant)).parent
LOOKING = {"search", "finditer", "findall", "sub", "subn", "split"}
MATCHING = {"match", "fullmatch"}
COMPILES = {"compile"}

BOUNDED = {
    ("formats/gguf/companions.py", r"'(?:^|[-_.])(?:mmproj|model|(?:I?Q|TQ|BF|F|MXFP)\\d\\w*)(?=[-_.]|$)'"): (
        "a file's name: 255 bytes"
    ),
    ("hub/jobs.py", r"'(?P<model>.+)[-._](?P<tag>(?:I?Q|TQ|BF|F|MXFP)\\d\\w*)'"): "a file's name: 255 bytes",
}
"""Expressions that take more than linear time of texts that are short, by file and pattern: why they are short."""

CONTROLS = Controls([*ALWAYS_CONTROL, *(f"<|reserved_{n}|>" for n in range(30)), "a", "aa", "aaa", "aab", "\\", '"'])
MADE_LATER: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("formats/gguf/companions.py", "f'(?:^|[-_.]){name}(?:[-_.]|$)'"): lambda: [r"(?:^|[-_.])F16(?:[-_.]|$)"],
    ("formats/huggingface/architectures/names.py", "re.escape(block) + '\\\\.(0|[1-9]\\\\d{0,3})\\\\.(.+)'"): lambda: [
        r"model\.layers\.(0|[1-9]\d{0,3})\.(.+)"
    ],
    ("formats/huggingface/checkpoint.py", "pattern"): lambda: [mark.pattern.pattern for mark in checkpoint._MARKS],
    ("quant/presets.py", "pattern"): list,  # the user's own, for names of tensors: see the tests of presets
    ("recipes/int8/quantize.py", "f'(?:{re.escape(str(folder))}/)?(?:prepared-\\\\w+|trial|node)\\\\.onnx'"): lambda: [
        r"(?:/tmp/x/)?(?:prepared-\w+|trial|node)\.onnx"
    ],
    ("runtime/plaintext.py", "_trie(sorted(self.texts), 0)"): lambda: [_pattern(CONTROLS._pattern)],
    ("runtime/plaintext.py", "f'[{firsts}]'"): lambda: [_pattern(CONTROLS._first)],
}
"""Expressions made of values that their module does not know, by file and source: examples of them."""


# Told apart are remarks, texts, and expressions: a slash behind what cannot end a value, and no space behind it.
_INSIDE = r"\\.|\[(?:\\.|[^\]\\])*\]"
SCRIPT = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`"""
    rf"""|(?<=[=(,:?!&|;{{}}\[\n\ ])/(?P<pattern>(?:{_INSIDE}|[^/\\\n\[\ ])(?:{_INSIDE}|[^/\\\n\[])*)/"""
    r"""(?P<flags>[a-z]*)""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Use:
    """A regular expression and how it is used."""

    file: str
    line: int
    written: str
    pattern: str | bytes | None
    flags: int
    searched: bool
    to_end: bool


@cache
def _trees() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def _module(file: str) -> ModuleType:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return importlib.import_module(f"kvant.{name}" if name != "__init__" else "kvant")


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Yield the calls of functions of `re`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=way)) if (
                way in LOOKING | MATCHING | COMPILES
            ):
                yield node, way


@cache
def _methods() -> dict[tuple[str, str], set[str]]:
    """Return the methods that a name is asked for, by file and name; those of names that others import for any file."""
    found: dict[tuple[str, str], set[str]] = {}
    for file, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in LOOKING | MATCHING:
                owner = node.value
                if isinstance(owner, ast.Name):
                    found.setdefault((file if owner.id.startswith("_") else "", owner.id), set()).add(node.attr)
                elif isinstance(owner, ast.Attribute):
                    found.setdefault(("", owner.attr), set()).add(node.attr)
    return found


def _ways(file: str, names: list[str]) -> set[str]:
    """Return the methods by which a compiled pattern is used, as far as its name tells; all where it does not."""
    methods = _methods()
    found = set().union(*(methods.get((at, name), set()) for name in names for at in (file, "")))
    return found or LOOKING


@cache
def uses() -> list[Use]:
    """Return all uses of regular expressions in the package."""
    found = []
    for file, tree in _trees().items():
        named = {
            id(node.value): [target.id for target in node.targets if isinstance(target, ast.Name)]
            for node in ast.walk(tree) if isinstance(node, ast.Assign)
        }  # fmt: skip
        for call, way in _calls(tree):
            source = ast.unparse(call.args[0])
            flags = [k.value for k in call.keywords if k.arg == "flags"]
            position = {"compile": 1, "sub": 4, "subn": 4, "split": 3}.get(way, 2)
            flags += call.args[position : position + 1]
            try:
                values = vars(_module(file))
                pattern = eval(source, values)
                number = int(eval(ast.unparse(flags[0]), {"re": re})) if flags else 0
            except NameError:
                pattern, number = None, 0
            ways = _ways(file, named.get(id(call), [])) if way in COMPILES else {way}
            found.append(Use(file, call.lineno, source, pattern, number, bool(ways & LOOKING), ways == {"fullmatch"}))
    return found


def test_all_take_linear_time() -> None:
    """One test for all: to find them takes seconds, which each worker would spend on names of tests alone."""
    wrong = []
    for use in uses():
        if use.pattern is not None:
            why = ambiguity(use.pattern, use.flags, searched=use.searched, to_end=use.to_end)
            if (why is None) == ((use.file, use.written) in BOUNDED):
                wrong.append(f"{use.file}:{use.line}: {use.pattern!r}: {why}")
    assert wrong == []


def test_those_made_later_are_known() -> None:
    assert {(use.file, use.written) for use in uses() if use.pattern is None} == set(MADE_LATER)
    for examples in MADE_LATER.values():
        assert [why for pattern in examples() if (why := ambiguity(pattern))] == []


def _pattern(made: re.Pattern[str] | None) -> str:
    assert made is not None
    return made.pattern


def _scripts() -> list[tuple[str, str, str]]:
    """Return the regular expressions of the page: file, pattern as Python has it, flags."""
    return [
        (path.name, match["pattern"].replace(r"\/", "/").replace(r"\p{L}\p{N}", r"\w"), match["flags"])
        for path in sorted((ROOT / "serve" / "page").glob("*.js"))
        for match in SCRIPT.finditer(path.read_text()) if match["pattern"]
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Possible nested set")
def test_the_page_reads_answers_in_linear_time() -> None:
    found = _scripts()
    assert len(found) > 25
    assert {pattern for file, pattern, _ in found if file == "markdown.js"} > {
        r"[\\`*_~[h\n]",
        r"^ {0,3}(#{1,6}) (.*)$",
    }
    for file, pattern, flags in found:
        assert set(flags) <= set("gyusi"), f"{file}: {pattern}: teach this test what {flags} means"
        assert ambiguity(pattern, re.DOTALL if "s" in flags else 0) is None, f"{file}: {pattern}"


@pytest.mark.parametrize(
    ("pattern", "mode"),
    [
        ("(a+)*b", {"searched": False}), ("(?:a|a)*b", {"searched": False}), (r"(?:x*y?)*z", {"searched": False}),
        ("a*a*b", {"searched": False}), (".*x.*y", {"searched": False}),
        (r"\s+.*", {"searched": False, "to_end": True}),
        (r"\s+$", {}), ("x*y", {}), (r"<[^>]++>", {}), (r"\d+(?:\.\d*)?s", {}), (r"(?:\s*+x)*y", {}),
        ("(a{1,300})*b", {}),
    ],
)  # fmt: skip
def test_what_takes_longer_is_seen(pattern: str, mode: dict[str, bool]) -> None:
    assert ambiguity(pattern, **mode)


@pytest.mark.parametrize(
    ("pattern", "mode"),
    [
        (r"\s+$", {"searched": False}), ("xy*z", {}), (r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', {}), ("<[^<>]++>", {}),
        (r"\s++.*", {"searched": False, "to_end": True}), (".+-\\d{5}", {"searched": False}), ("^a*b", {}), ("a+", {}),
    ],
)  # fmt: skip
def test_what_takes_no_longer_is_let_pass(pattern: str, mode: dict[str, bool]) -> None:
    assert ambiguity(pattern, **mode) is None


def test_no_other_way_leads_to_re() -> None:
    for file, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("re", "regex"), file
            if isinstance(node, ast.Import):
                assert all(name.name != "regex" and (name.name != "re" or not name.asname) for name in node.names), file
