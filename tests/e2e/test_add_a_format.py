"""The distribution on the page about adding a format is made, and its tests run as written there."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-a-format.md"
FILE = re.compile(r"<!-- (?P<name>[\w.]+) -->\n```\w+\n(?P<body>.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files where Python finds them, with their entry points as an installer would write them."""
    place = tmp_path_factory.mktemp("site")
    for match in FILE.finditer(PAGE.read_text(encoding="utf-8")):
        (place / match["name"]).write_text(match["body"])
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    info = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, offers in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in offers.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return place


@pytest.mark.heavy
@pytest.mark.parametrize("tests", ["TestPlain", "TestPlainEngine"])
def test_what_the_page_adds_passes_the_contracts(installed: Path, tests: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"{installed / 'test_plain.py'}::{tests}",
    ]
    done = subprocess.run(
        command, cwd=installed, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
