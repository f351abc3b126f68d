"""Who imports whom: no circles, and frameworks only where they belong. `lint-imports` holds the layers."""

import ast
import functools
import sys
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"

FRAMEWORKS: Mapping[str, tuple[str, ...]] = {
    "google": ("formats.onnx",), "h11": ("serve",), "httpx2": ("hub",),
    "huggingface_hub": ("hub",), "jinja2": ("recipes.report", "runtime.template"),
    "markupsafe": ("recipes.report",), "minijinja": ("runtime",), "mlx": ("runtime",), "mlx_lm": ("runtime",),
    "onnx": ("formats.onnx", "recipes.int8", "recipes.targets.onnx", "runtime", "testing"),
    "onnxruntime": ("formats.onnx", "runtime"), "onnxruntime_genai": ("runtime",), "onnxscript": ("runtime",),
    "onnxslim": ("runtime",), "opentelemetry": ("serve",), "prometheus_client": ("serve",), "pytest": ("testing",),
    "rich": ("cli",), "starlette": ("serve",), "tokenizers": ("runtime", "testing"),
    "torch": ("calibrate",), "typer": ("cli",), "uvicorn": ("serve",), "xllamacpp": ("runtime",),
    "yaml": ("hub.licences", "recipes.optimize.schema"),
}  # fmt: skip
"""Which parts import what kvant does not write itself. All may import NumPy and msgspec."""

Imports = Mapping[str, frozenset[str]]


@functools.cache
def modules() -> Mapping[str, Path]:
    """Every module with its file; of the native one that is its stub."""
    files = [*SOURCE.rglob("kvant/**/*.py"), *SOURCE.rglob("kvant/**/*.pyi")]
    return {".".join(f.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Every module that one names in an import, wherever in it: at its head, in a function, for types only."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], node.module or ""]) if node.level else str(node.module)
            wholes = {alias.name: f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
            found |= {whole if whole in modules() else base for whole in wholes.values()}
    return frozenset(found)


@functools.cache
def imports() -> Imports:
    return {m: imported(m) & modules().keys() - {m} for m in modules()}


def circle(graph: Imports) -> list[str]:
    """Return a way from a module to itself, if there is one."""
    done: set[str] = set()

    def walk(at: str, way: list[str]) -> list[str]:
        if at in way:
            return [*way[way.index(at) :], at]
        if at not in done:
            for target in sorted(graph.get(at, ())):
                if found := walk(target, [*way, at]):
                    return found
            done.add(at)
        return []

    return next(filter(None, (walk(module, []) for module in sorted(graph))), [])


def test_a_circle_is_found() -> None:
    graph = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"d", "b"})}
    assert circle(graph) == ["b", "c", "b"]
    assert circle({**graph, "c": frozenset({"d"})}) == []


def test_no_module_imports_itself_by_a_detour() -> None:
    found = circle(imports())
    assert not found, " -> ".join(found)


def test_frameworks_stay_where_they_belong() -> None:
    ours = {"kvant", "numpy", "msgspec", *sys.stdlib_module_names}
    found = [(module, target.partition(".")[0]) for module in modules() for target in imported(module)]
    unknown = {root for _, root in found} - ours - FRAMEWORKS.keys()
    assert not unknown, "say in FRAMEWORKS which parts may import it"
    strays = [
        (module, root)
        for module, root in found
        if root not in ours
        and not f"{module}.".removeprefix("kvant.").startswith(tuple(f"{part}." for part in FRAMEWORKS[root]))
    ]
    assert strays == []
