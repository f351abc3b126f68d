"""Fixtures that every test can use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# CI tries the same examples every time: what it finds is in the change, not in the dice.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a kvant home of its own, so that no cache is shared by accident."""
    home = tmp_path_factory.mktemp("kvant-home")
    monkeypatch.setenv("KVANT_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def reference_model() -> Path:
    """Directory of the full-precision reference model, made by `make test` before the tests run."""
    path = Path(os.environ.get("KVANT_REFERENCE_MODEL", ROOT / "models" / "smollm2-135m")).resolve()
    if not (path / "config.json").is_file():
        pytest.fail(f"{path}: no reference model there. Run: python tools/reference_model.py smollm2-135m {path}")
    return path
