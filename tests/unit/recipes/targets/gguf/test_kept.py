import os
from pathlib import Path

import pytest

from kvant.files import cache_dir
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.presets import plan_preset
from kvant.recipes import cache
from kvant.recipes.output import place
from kvant.recipes.targets.gguf import kept
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_tiny_model("llama", tmp_path_factory.mktemp("tiny") / "m"))


def test_a_variant_is_encoded_once(tiny: Model, tmp_path: Path) -> None:
    plan = plan_preset(tiny, "Q4_0")
    path = kept.encoded(tiny, plan)
    stamp = path.stat().st_mtime_ns
    assert kept.encoded(tiny, plan) == path
    assert path.stat().st_mtime_ns == stamp
    quantize(tiny, plan, tmp_path / "other.gguf")
    assert path.read_bytes() == (tmp_path / "other.gguf").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "edit", "no stamp"])
def test_a_damaged_variant_is_made_anew(tiny: Model, damage: str) -> None:
    plan = plan_preset(tiny, "Q4_0")
    path = kept.encoded(tiny, plan)
    content = path.read_bytes()
    if damage == "cut":
        os.truncate(path, 1000)
    elif damage == "edit":
        path.write_bytes(content[:-1] + b"?")
    else:
        path.with_suffix(".json").unlink()
    assert kept.encoded(tiny, plan).read_bytes() == content


def test_other_plans_and_sources_have_other_keys(tiny: Model, tmp_path: Path) -> None:
    other = open_model(write_tiny_model("llama", tmp_path / "m", seed=1))
    keys = [
        kept.variant_key(tiny, plan_preset(tiny, "Q4_0"), None),
        kept.variant_key(tiny, plan_preset(tiny, "Q8_0"), None),
        kept.variant_key(other, plan_preset(other, "Q4_0"), None),
    ]
    assert len(set(keys)) == 3


def test_forgotten_variants_are_gone(tiny: Model) -> None:
    plan = plan_preset(tiny, "Q4_0")
    path = kept.encoded(tiny, plan)
    kept.forget(tiny, plan)
    kept.forget(tiny, plan)
    assert list(path.parent.iterdir()) == []


def test_delivery_shares_the_bytes_and_an_edit_is_noticed(tiny: Model, tmp_path: Path) -> None:
    plan = plan_preset(tiny, "Q8_0")
    path = kept.encoded(tiny, plan)
    content = path.read_bytes()
    out = tmp_path / "out.gguf"
    place(path, out)
    place(path, out)
    assert out.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["out.gguf"]
    with out.open("r+b") as file:
        file.write(b"????")
    assert kept.encoded(tiny, plan).read_bytes() == content


def test_delivery_copies_where_it_cannot_link(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = kept.encoded(tiny, plan_preset(tiny, "Q8_0"))
    place(path, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()
    assert (tmp_path / "out.gguf").stat().st_ino != path.stat().st_ino


def test_an_unreadable_score_is_no_score() -> None:
    assert cache.read_score("absent") is None
    (cache_dir("scores") / "bad.json").write_text("{")
    assert cache.read_score("bad") is None
