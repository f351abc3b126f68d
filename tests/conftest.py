"""Fixtures that every test can use."""

import os
from collections.abc import Generator
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


def group(item: pytest.Item) -> str:
    """Return what a test shares with others that is too dear to make twice: empty where there is no such thing."""
    if item.get_closest_marker("model"):
        return "model"
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return item.path.name if folder in {"e2e", "parity"} or item.get_closest_marker("heavy") else ""


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Keep tests that share what is dear on one worker of `--dist loadgroup`, and begin with them.

    A wrapper: xdist reads the groups before conftests' plain hooks run, and pytest-randomly's order comes after those.
    The long chains first, thousands of small tests last, and no worker waits for another at the end.
    """
    for item in items:
        if name := group(item):
            item.add_marker(pytest.mark.xdist_group(name))
    yield
    if WORKER and config.getvalue("loadgroup"):
        lost = [item.nodeid for item in items if group(item) and not item.nodeid.endswith(f"@{group(item)}")]
        assert not lost, f"{lost[0]}: xdist lost its group, as 3.8 does with pytest 9.2. Run: make .venv/bin/.test"
    order = {"model": 0, "": 2}
    items.sort(key=lambda item: order.get(group(item), 1))


@pytest.fixture(autouse=True)
def own_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Give every test a kvant home of its own, so that no cache is shared by accident.

    Of the reference model its F32 file and its logits are shared on purpose: they are the engine's, the same for all
    that is measured, and cost more than most tests.
    """
    home = tmp_path_factory.mktemp("kvant-home")
    monkeypatch.setenv("KVANT_HOME", str(home))
    if "reference_model" in request.fixturenames:
        (home / "cache").mkdir()
        for name in ("base", "logits"):
            shared = tmp_path_factory.getbasetemp() / "reference-model" / name
            shared.mkdir(parents=True, exist_ok=True)
            (home / "cache" / name).symlink_to(shared, target_is_directory=True)
    return home


@pytest.fixture(scope="session")
def reference_model() -> Path:
    """Directory of the full-precision reference model, made by `make test` before the tests run."""
    path = Path(os.environ.get("KVANT_REFERENCE_MODEL", ROOT / "models" / "smollm2-135m")).resolve()
    if not (path / "config.json").is_file():
        pytest.fail(f"{path}: no reference model there. Run: python tools/reference_model.py smollm2-135m {path}")
    return path
