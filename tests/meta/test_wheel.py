"""The wheel in environments of its own: it imports with only what it declares."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIP = ("-m", "pip", "--disable-pip-version-check", "-q")

# Imports every module; one that cannot be must say in an error of ours which extra it needs.
IMPORT_ALL = """
import importlib, pkgutil, kvant
from kvant.errors import MissingDependencyError
modules = ["kvant", *(found.name for found in pkgutil.walk_packages(kvant.__path__, "kvant.", onerror=lambda _: None))]
named = []
for name in modules:
    try:
        importlib.import_module(name)
    except MissingDependencyError as error:
        named.append(name)
        assert "kvant[" in str(error) or "is not installed" in str(error), (name, error)
    except ModuleNotFoundError as error:
        named.append(f"{name} needs {error.name}")
print(len(modules))
print("\\n".join(sorted(named)))
"""
# Packages of an extra as a whole: their command or job says which before it imports them.
OF_AN_EXTRA = ("kvant.calibrate", "kvant.serve")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, *PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", place, ROOT], check=True)
    (made,) = place.glob("kvant-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_imports_with_only_what_it_declares(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, *PIP, "install", wheel], check=True)
    subprocess.run([python, "-I", "-m", "pip", "check"], check=True)
    done = subprocess.run([python, "-I", "-c", IMPORT_ALL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, *named = done.stdout.split("\n")
    assert int(count) > 300
    assert [line for line in named if line and not line.startswith(OF_AN_EXTRA)] == []
    help_ = subprocess.run([tmp_path / "env" / "bin" / "kvant", "--help"], capture_output=True, text=True, check=True)
    assert "optimize" in help_.stdout
