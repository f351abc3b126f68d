"""Programs outside the package name nothing of kvant that does not exist (their types are checked by mypy)."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py")])


def imported(program: Path) -> Iterator[tuple[str, str]]:
    """Yield the module and the name ("" for the module itself) of every import of kvant, those in functions too."""
    for node in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "kvant")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kvant":
            yield from ((str(node.module), alias.name) for alias in node.names)


def exists(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
        return not name or hasattr(found, name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.relative_to(ROOT).as_posix())
def test_what_a_program_imports_of_kvant_exists(program: Path) -> None:
    assert [found for found in imported(program) if not exists(*found)] == []


def test_a_name_that_is_gone_is_found() -> None:
    assert exists("kvant.serve.memory", "prediction")
    assert exists("kvant.serve", "memory")
    assert not exists("kvant.serve.memory", "predicted_bytes")
    assert not exists("kvant.nowhere", "")
