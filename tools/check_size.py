"""Keep modules and functions small: a ratchet that fails when one grows past its limit.

Pure tables are exempt by name. Run as `python tools/check_size.py`.
"""

import ast
import sys
from pathlib import Path

MODULE_LINES = 800
FUNCTION_LINES = 80
TABLES = {"native/include/kvant/codebooks.h"}


def long_functions(path: Path) -> list[str]:
    """Name the functions of a Python file that are longer than the limit, docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: function {node.name} has {lines} lines, limit {FUNCTION_LINES}")
    return found


def main() -> int:
    """Print every breach; 1 if there is one."""
    files = [p for top in ("src", "tests", "benchmarks", "tools") for p in Path(top).rglob("*.py")]
    files += [p for p in Path("native").rglob("*") if p.suffix in {".cpp", ".h"}]
    breaches = []
    for path in sorted(files):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES and path.as_posix() not in TABLES:
            breaches.append(f"{path}: {lines} lines, limit {MODULE_LINES}")
        if path.suffix == ".py":
            breaches += long_functions(path)
    fine = f"sizes: {len(files)} files within {MODULE_LINES} lines, functions within {FUNCTION_LINES}"
    print("\n".join(breaches) or fine)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
