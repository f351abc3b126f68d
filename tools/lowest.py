"""Print constraints that hold every dependency at its lowest declared version, for pip's `-c`.

    python tools/lowest.py [EXTRA...] > lowest.txt && pip install -c lowest.txt '.[EXTRA...]'

A dependency that stands twice takes the highest of its lowest versions.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def lowest(extras: list[str]) -> dict[str, Version]:
    """Return the lowest version of every dependency that applies here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found: dict[str, Version] = {}
    for requirement in map(Requirement, stated):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        bounds = [Version(s.version) for s in requirement.specifier if s.operator in {">=", "=="}]
        found[requirement.name] = max([*bounds, *([found[requirement.name]] if requirement.name in found else [])])
    return found


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in sorted(lowest(sys.argv[1:]).items())))
