"""What must hold for the repository as a whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvant
from kvant.dtypes import BLOCK_TYPES
from kvant.quant.presets import PRESETS

HEAVY = {"numpy", "xllamacpp", "tokenizers", "jinja2", "msgspec"}
ROOT = Path(__file__).resolve().parent.parent.parent
READ_BY_PEOPLE = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_public_names_are_sorted_and_exist() -> None:
    assert list(kvant.__all__) == sorted(kvant.__all__)
    for name in kvant.__all__:
        assert getattr(kvant, name) is not None


def test_every_command_block_type_and_preset_is_documented() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in READ_BY_PEOPLE)
    for name in [*BLOCK_TYPES, *PRESETS]:
        assert f"`{name}`" in text, name


def test_no_path_of_one_machine_is_in_the_repository() -> None:
    suspicious = re.compile(rb"/work/|/root/|/home/[a-z]+/|/tmp/k/|opt/pypi")
    for path in tracked():
        if path != Path(__file__) and path.suffix not in {".npz", ".png", ".bin"}:
            assert not suspicious.search(path.read_bytes()), path


@pytest.mark.parametrize("module", ["kvant", "kvant.cli.main"])
def test_help_imports_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
