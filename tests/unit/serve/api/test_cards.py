"""/api/kvant/cards: what models are and what was measured of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from kvant.formats.gguf.reader import read_gguf
from kvant.serve.app import make_app
from kvant.serve.library import DirectoryLibrary
from kvant.serve.settings import Settings


@pytest.fixture
def root(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "models"))


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    app = make_app(Settings(models=root), DirectoryLibrary(root))
    with TestClient(app, base_url="http://localhost") as made:
        yield made


def measure(path: Path, kld: float, **more: Any) -> None:
    score = {"size_bytes": path.stat().st_size, "kld_mean": kld, "kld_se": 0.001, "top1": 0.9, "tg_tok_s": 12.0}
    passport = {"base_sha256": "b", "text": "held out", "text_sha256": "t", "score": score} | more
    path.with_suffix(".passport.json").write_text(json.dumps(passport))


def test_a_card_tells_what_a_model_is(client: TestClient, root: Path) -> None:
    answer = client.get("/api/kvant/cards").json()

    model = read_gguf(root / "tiny.gguf")
    card = next(card for card in answer["cards"] if card["name"] == "tiny")
    assert [card["name"] for card in answer["cards"]] == ["family/other", "tiny"]
    assert (card["architecture"], card["parameters"], card["context_length"]) == ("llama", model.n_weights, 2048)
    assert (card["size_bytes"], card["has_template"]) == ((root / "tiny.gguf").stat().st_size, True)
    assert card["ram_bytes"] > card["size_bytes"]
    assert sum(block["bytes"] for block in card["blocks"]) == model.tensor_bytes
    assert sum(block["tensors"] for block in card["blocks"]) == len(model.tensors)
    assert card["blocks"][0]["type"] == "F16"
    assert card["passport"] is None
    assert answer["plots"] == []


def test_one_card_by_its_name_with_slashes_and_tags(client: TestClient) -> None:
    assert client.get("/api/kvant/cards/family/other").json()["name"] == "family/other"
    assert client.get("/api/kvant/cards/tiny:latest").json()["name"] == "tiny"


@pytest.mark.parametrize("name", ["none", "../models/tiny", "..%2F..%2Fetc%2Fpasswd", "broken"])
def test_a_model_that_is_not_there_is_an_error_in_words(client: TestClient, name: str) -> None:
    answer = client.get(f"/api/kvant/cards/{name}")

    assert answer.status_code == 404
    assert answer.json()["error"]


def test_variants_of_one_base_on_one_text_share_a_plot(client: TestClient, root: Path) -> None:
    measure(root / "tiny.gguf", 0.04)
    measure(root / "family" / "other.gguf", 0.2)

    answer = client.get("/api/kvant/cards").json()

    (plot,) = answer["plots"]
    points = {point["point"]["name"]: point for point in plot["wide"]["points"]}
    assert plot["text"] == "held out"
    assert set(points) == {"tiny", "other"}
    assert points["tiny"]["y"] > points["other"]["y"]  # less divergence is lower
    assert points["tiny"]["point"]["on_front"]
    assert not points["other"]["point"]["on_front"]
    assert "12.0 tokens/s" in points["tiny"]["point"]["notes"]
    assert answer["cards"][1]["passport"]["kld_mean"] == 0.04
    assert (plot["loss"], plot["axis"]) == ("mean KL divergence", "mean KLD")


def test_vectors_are_told_by_their_distance_and_share_no_plot_with_text(client: TestClient, root: Path) -> None:
    score = {"distance_mean": 0.00966, "distance_se": 0.0004, "overlap": 0.93, "pp_tok_s": 447.0}
    size = (root / "family" / "other.gguf").stat().st_size
    measure(root / "tiny.gguf", 0.04)
    measure(root / "family" / "other.gguf", 0.0, score=score | {"size_bytes": size})

    answer = client.get("/api/kvant/cards").json()

    other, tiny = answer["cards"]
    assert tiny["loss"]["brief"] == "KLD 0.0400 ± 0.0010"
    assert ["Speed", "12.0 tokens/s generated"] in tiny["loss"]["rows"]
    assert other["loss"] == {
        "brief": "distance 0.00966 ± 0.00040",
        "rows": [
            ["Mean distance", "0.00966 ± 0.00040"], ["Same 10 nearest", "93.0 %"], ["Speed", "447 tokens/s read"],
        ],
    }  # fmt: skip
    assert answer["plots"] == []


def test_variants_measured_on_other_texts_or_bases_are_not_compared(client: TestClient, root: Path) -> None:
    measure(root / "tiny.gguf", 0.04)
    measure(root / "family" / "other.gguf", 0.2, text_sha256="u")

    assert client.get("/api/kvant/cards").json()["plots"] == []


def test_a_lossless_variant_can_be_plotted(client: TestClient, root: Path) -> None:
    measure(root / "tiny.gguf", 0.0)
    measure(root / "family" / "other.gguf", 0.0)

    assert len(client.get("/api/kvant/cards").json()["plots"]) == 1
