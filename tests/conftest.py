"""Fixtures that every test can use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# CI tries the same examples every time: what it finds is in the change, not in the dice.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    # Engines wait by spinning: two of as many threads as there are cores take twice as long as one after the other.
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[int(WORKER.removeprefix("gw")) % len(allowed)]})

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
