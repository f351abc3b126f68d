"""Short names of repositories."""

from pathlib import Path

import pytest

from hub_server import Hub, Repo
from kvant.hub.names import ModelName
from kvant.hub.pull import pull
from kvant.hub.sources.known import FAMILIES, known_repository, short_names
from kvant.hub.sources.names import HubSource, parse_source
from kvant.hub.store import Store

REPO = "bartowski/SmolLM2-135M-Instruct-GGUF"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("smollm2:135m", (REPO, None)),
        ("smollm2:135m-q8_0", (REPO, "Q8_0")),
        ("SmolLM2", ("bartowski/SmolLM2-1.7B-Instruct-GGUF", None)),
        ("qwen3:latest", ("unsloth/Qwen3-8B-GGUF", None)),
        ("phi4-mini", ("unsloth/Phi-4-mini-instruct-GGUF", None)),
        ("smollm2:9b", None), ("smollm2:", None), ("smollm2:q8_0", None), ("other", None), ("org/smollm2", None),
    ],
)  # fmt: skip
def test_what_a_short_name_means(name: str, found: tuple[str, str | None] | None) -> None:
    assert known_repository(name) == found


def test_every_short_name_names_a_repository_and_a_model() -> None:
    for name in (*FAMILIES, *short_names()):
        source = parse_source(name)
        assert isinstance(source, HubSource)
        assert parse_source(str(source)) == HubSource(repo=source.repo, choice=source.choice)
        assert str(ModelName.parse(name)) == name


def test_a_path_goes_before_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").touch()
    assert not isinstance(parse_source("smollm2"), HubSource)


def test_pulled_by_its_short_name(hub: Hub, tiny: Path) -> None:
    data = (tiny / "tiny-Q8_0.gguf").read_bytes()
    hub.repos[REPO] = Repo({"SmolLM2-135M-Instruct-Q8_0.gguf": data})
    got = pull("smollm2:135m")
    assert (got.name, got.variant, got.was_here) == ("smollm2:135m", "Q8_0", False)
    assert pull("smollm2:135m").was_here


def test_ones_own_model_of_that_name_stays(hub: Hub, tiny: Path) -> None:
    Store.open().import_file(tiny / "tiny-Q8_0.gguf", "smollm2:135m")
    asked = len(hub.asked)
    assert pull("smollm2:135m").was_here
    assert len(hub.asked) == asked
