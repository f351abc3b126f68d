"""MLX as a target: sizes to the byte, one plan for the same bytes, keys that know what decides them."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvant.allocate.options import picked
from kvant.devices.detect import detect
from kvant.devices.profiles import PROFILES
from kvant.errors import BudgetError, OutputExistsError, PlanError, UnsupportedModelError
from kvant.files import cache_dir, sha256_file
from kvant.formats.huggingface.mlx import writer
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.importance import Entry, Importance
from kvant.quant.plan import Plan
from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import Calibration, calibrate
from kvant.recipes.targets.base import Material
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.limits import Limits
from kvant.recipes.targets.mlx import plan as plans
from kvant.recipes.targets.mlx.plan import TYPES
from kvant.recipes.targets.mlx.target import MLX, MLXWorkshop
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.runtime.mlx import MLXProcess
from kvant.testing.tiny_models import write_tiny_model

FAMILIES = ("llama", "llama3", "qwen2")
"""Tied, untied, and with biases beside its matrices."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    place = tmp_path_factory.mktemp("models")
    return {name: open_model(write_tiny_model(name, place / name, num_hidden_layers=2)) for name in FAMILIES}


@pytest.fixture(scope="module")
def measured(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Calibration]]:
    pytest.importorskip("torch")
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(f"Line {i} of {i * i} and some words about rivers, mills and bread.\n" for i in range(90)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVANT_HOME", str(tmp_path_factory.mktemp("home")))
        yield {name: calibrate(model, str(text), windows=2, threads=1) for name, model in models.items()}


def importance(model: Model, source: str = "i.dat") -> Importance:
    matrices = {name: t for name, t in model.tensors.items() if len(t.shape) == 2}
    sums = np.random.default_rng(7).uniform(0.001, 9, 1024).astype(np.float32)
    count = np.ones(1, np.float32)
    entries = {name: Entry(sums=sums[None, : t.shape[-1]], counts=count) for name, t in matrices.items()}
    return Importance(entries=entries, datasets=("words.txt",), source=source)


def workshop(model: Model, **more: object) -> MLXWorkshop:
    return MLX().open(Material(model=model, machine=detect(), device=PROFILES["laptop-8gb"], threads=1, **more))  # type: ignore[arg-type]


def weights(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def written_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in weights(directory))


def tensor_bytes(directory: Path) -> int:
    """Bytes behind the headers, each of which says its length first."""
    headers = [8 + int.from_bytes(file.read_bytes()[:8], "little") for file in weights(directory)]
    return written_bytes(directory) - sum(headers)


def hashes(directory: Path) -> dict[str, str]:
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in directory.rglob("*") if p.is_file()}


def some_choice(shop: MLXWorkshop, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {name: kinds[int(rng.integers(len(kinds)))].kind for name, kinds in shop.options().items()}


def chosen_bytes(shop: MLXWorkshop, choice: dict[str, str]) -> int:
    return sum(picked(kinds, choice[name]).n_bytes for name, kinds in shop.options().items())


def check_written(shop: MLXWorkshop, candidate: Candidate, out: Path) -> None:
    """Check that what is written is what was predicted."""
    shop.write(candidate.plan, out, is_fitted=candidate.is_fitted, threads=1)
    assert written_bytes(out) == candidate.size_bytes
    assert candidate.bpw == 8 * tensor_bytes(out) / shop.material.model.n_weights
    model = open_model(out)
    found = {matrix.name: matrix for matrix in shop.matrices(candidate.plan)}
    assert set(found) == {name for name, t in model.tensors.items() if len(t.shape) == 2}
    for name, stored in model.stored.items():
        assert (found[name].type, found[name].n_bytes) == (stored.kind, stored.n_bytes)
        assert found[name].n_weights == np.prod(model.tensors[name].shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_size_of_every_type_is_known_to_the_byte(family: str, models: dict[str, Model], tmp_path: Path) -> None:
    shop = workshop(models[family])
    found = shop.presets()
    assert {c.preset for c in found} == set(TYPES)
    assert [c.size_bytes for c in found] == sorted(c.size_bytes for c in found)
    assert [c.preset for c in sorted(found, key=lambda c: c.distortion)] == list(TYPES)
    for candidate in found:
        check_written(shop, candidate, tmp_path / candidate.preset)
        assert candidate.name == f"mlx {candidate.preset}"
        assert not candidate.is_fitted
        assert candidate.ram.weights_bytes == candidate.size_bytes
        assert candidate.speed_tok_s > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_with_calibration_too_and_of_every_mix(
    family: str, models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path
) -> None:
    shop = workshop(models[family], calibration=measured[family])
    plain = {c.preset: c for c in workshop(models[family]).presets()}
    for candidate in shop.presets(["8bit", "3bit-g32"]):
        check_written(shop, candidate, tmp_path / candidate.preset)
        assert candidate.is_fitted
        assert candidate.distortion < plain[candidate.preset].distortion / 2
    for seed in range(3):
        mix = shop.mix(some_choice(shop, seed), lambda bpw: f"kvant-{bpw:.2f}")
        assert mix.preset == mix.plan.preset == f"kvant-{mix.bpw:.2f}"
        assert mix.name == f"mlx {mix.preset}"
        check_written(shop, mix, tmp_path / f"mix-{seed}")


def test_shares_of_weights_are_counted(
    models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (writer, plans):
        monkeypatch.setattr(module, "SHARD_BYTES", 150_000)
    shop = workshop(models["llama3"], calibration=measured["llama3"])
    for candidate in shop.presets(["8bit", "4bit"]):
        check_written(shop, candidate, tmp_path / candidate.preset)
        assert len(weights(tmp_path / candidate.preset)) > 3
    for seed in range(10):
        choice = some_choice(shop, seed)
        assert shop.mix(choice, str).size_bytes <= chosen_bytes(shop, choice) + shop.rest_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_chosen_is_bounded_tightly(
    family: str, models: dict[str, Model], measured: dict[str, Calibration]
) -> None:
    shop = workshop(models[family], calibration=measured[family])
    largest = {name: max(kinds, key=lambda o: o.n_bytes).kind for name, kinds in shop.options().items()}
    assert shop.mix(largest, str).size_bytes == chosen_bytes(shop, largest) + shop.rest_bytes
    least = {name: min(kinds, key=lambda o: o.n_bytes).kind for name, kinds in shop.options().items()}
    for choice in (least, *(some_choice(shop, seed) for seed in range(10))):
        over = chosen_bytes(shop, choice) + shop.rest_bytes - shop.mix(choice, str).size_bytes
        assert 0 <= over <= 12 * len(choice)


def test_limits_are_the_budgets(models: dict[str, Model]) -> None:
    assert workshop(models["llama"]).limits == Limits()
    limits = workshop(models["llama"], budget=Budget(max_size_bytes=10**6, min_speed_tok_s=5.0)).limits
    assert limits == Limits(max_file_bytes=10**6)


def test_a_choice_becomes_a_mix_and_back(models: dict[str, Model], measured: dict[str, Calibration]) -> None:
    for family in FAMILIES:
        shop = workshop(models[family], calibration=measured[family])
        for seed in range(3):
            choice = some_choice(shop, seed)
            mix = shop.mix(choice, str)
            assert shop.choice(mix) == choice
            assert mix.predicted_kld == pytest.approx(
                sum(picked(kinds, choice[name]).cost for name, kinds in shop.options().items())
            )
            shuffled = dict(reversed(choice.items()))
            assert shop.key(shop.mix(shuffled, str)) == shop.key(mix)
        (four,) = shop.presets(["4bit"])
        assert shop.choice(four) == dict.fromkeys(shop.options(), "4bit-g64")
        assert shop.choice(msgspec.structs.replace(four, is_fitted=False)) is None
        (wide,) = shop.presets(["4bit-g128"])
        assert shop.choice(wide) is None
    without = workshop(models["llama"])
    assert without.options() == {}
    assert without.choice(without.presets(["4bit"])[0]) is None


def test_threads_do_not_change_a_bit_and_the_command_writes_the_same(
    models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path
) -> None:
    model, calibration = models["llama"], measured["llama"]
    known = importance(model)
    for label, material, asked in (
        ("plain", {}, {}),
        ("weighed", {"importance": known}, {"importance": known}),
        ("fitted", {"calibration": calibration, "importance": known}, {"calibrate": calibration}),
    ):
        shop = workshop(model, **material)
        (candidate,) = shop.presets(["4bit-g32"])
        for threads in (1, 3):
            out = tmp_path / f"{label}-{threads}"
            shop.write(candidate.plan, out, is_fitted=candidate.is_fitted, threads=threads)
        to_mlx(model, tmp_path / f"{label}-command", type="4bit-g32", **asked)
        found = [hashes(tmp_path / f"{label}-{how}") for how in ("1", "3", "command")]
        assert found[0] == found[1] == found[2]
    assert len({sha256_file(tmp_path / f"{kind}-1/model.safetensors") for kind in ("plain", "weighed", "fitted")}) == 3


def test_a_size_on_the_command_line_is_planned_the_same_way(
    models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path
) -> None:
    model, calibration = models["qwen2"], measured["qwen2"]
    shop = workshop(model, calibration=calibration)
    for limit in (600_000, 900_000):
        to_mlx(model, tmp_path / f"{limit}", type="4bit-g32", calibrate=calibration, max_size_bytes=limit)
        size = written_bytes(tmp_path / f"{limit}")
        assert limit - 9000 < size <= limit  # one layer's next grouping is more than that
        choice = plans.sized_choice(shop.options(), limit, shop.rest_bytes)
        again = plans.choice_plan(model, choice, "4bit-g32")
        shop.write(again, tmp_path / f"{limit}-plan", is_fitted=True, threads=1)
        assert hashes(tmp_path / f"{limit}-plan") == hashes(tmp_path / f"{limit}")
        quantization = json.loads((tmp_path / f"{limit}" / "config.json").read_text())["quantization"]
        assert (quantization["bits"], quantization["group_size"]) == (4, 32)
    with pytest.raises(BudgetError, match="2 bits for every layer"):
        to_mlx(model, tmp_path / "small", type="4bit", calibrate=calibration, max_size_bytes=10_000)


def test_a_plan_from_a_lock_gives_the_same_bytes(
    models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path
) -> None:
    shop = workshop(models["llama3"], calibration=measured["llama3"])
    mix = shop.mix(some_choice(shop, 1), lambda bpw: f"kvant-{bpw:.2f}")
    (recipe,) = shop.presets(["mixed_3_6"])
    for label, candidate in (("mix", mix), ("recipe", recipe)):
        read = msgspec.json.decode(msgspec.json.encode(candidate.plan), type=Plan)
        shop.write(candidate.plan, tmp_path / f"{label}-a", is_fitted=True, threads=1)
        shop.write(read, tmp_path / f"{label}-b", is_fitted=True, threads=1)
        assert hashes(tmp_path / f"{label}-a") == hashes(tmp_path / f"{label}-b")
    config = json.loads((tmp_path / "recipe-a" / "config.json").read_text())
    assert len(config["quantization"]) == 3 + len(recipe.plan.types)
    assert config["kvant"]["calibration.sha256"] == measured["llama3"].text.sha256


def test_a_key_knows_all_that_decides_the_bytes(
    models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path
) -> None:
    model = models["llama"]
    other = Importance(entries=importance(model).entries, datasets=("else.txt",), source="i.dat")
    shops = [
        workshop(model), workshop(model, importance=importance(model)), workshop(model, importance=other),
        workshop(model, calibration=measured["llama"]), workshop(models["llama3"]),
    ]  # fmt: skip
    keys = [shop.key(candidate) for shop in shops for candidate in shop.presets()]
    assert len(set(keys)) == len(keys) == 5 * len(TYPES)
    fitted = workshop(model, calibration=measured["llama"], importance=importance(model))
    assert [fitted.key(c) for c in fitted.presets()] == [shops[3].key(c) for c in shops[3].presets()]
    mix = fitted.mix(some_choice(fitted, 2), lambda _: "kvant-4.00")
    renamed = msgspec.structs.replace(mix, plan=msgspec.structs.replace(mix.plan, preset="kvant-4.00-2"))
    assert fitted.key(mix) == fitted.key(renamed)
    usual = msgspec.structs.replace(mix, plan=msgspec.structs.replace(mix.plan, preset="3bit"))
    assert fitted.key(mix) != fitted.key(usual)
    place = shutil.copytree(model.path, tmp_path / "copy")
    shop = workshop(open_model(place))
    (four,) = shop.presets(["4bit"])
    before = shop.key(four)
    (place / "chat_template.jinja").write_text("{{ messages }}")
    assert shop.key(four) != before


def test_artifacts_are_made_once_and_can_be_forgotten(models: dict[str, Model]) -> None:
    shop = workshop(models["llama"])
    (four,) = shop.presets(["4bit"])
    made = shop.make(four, threads=1)
    assert written_bytes(made) == four.size_bytes
    stamp = weights(made)[0].stat().st_mtime_ns
    assert shop.make(four) == made
    assert weights(made)[0].stat().st_mtime_ns == stamp
    shop.forget(four)
    assert not list(cache_dir("formats").iterdir())
    assert hashes(shop.make(four, threads=2))
    with pytest.raises(OutputExistsError):
        shop.write(four.plan, made, is_fitted=False)


def test_importance_is_used_where_an_encoder_takes_it_and_said_where_not(models: dict[str, Model]) -> None:
    model = models["llama"]
    known = importance(model)
    part = dataclasses.replace(known, entries={"blk.0.attn_q.weight": known.entries["blk.0.attn_q.weight"]})
    shop = workshop(model, importance=part)
    four, micro = sorted(shop.presets(["4bit", "mxfp4"]), key=lambda c: c.preset)
    assert "i.dat" in shop.remarks(four)[-1]
    assert shop.remarks(micro) == model.remarks
    assert shop.key(micro) == workshop(model).key(workshop(model).presets(["mxfp4"])[0])
    assert shop.key(four) != workshop(model).key(workshop(model).presets(["4bit"])[0])
    measured_here = dataclasses.replace(part, source="")
    assert workshop(model, importance=measured_here).remarks(four) == model.remarks


def test_types_that_come_to_the_same_are_one_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    model = open_model(write_tiny_model("llama", tmp_path / "odd", hidden_size=96, intermediate_size=64, head_dim=12))
    shop = workshop(model)
    (four,) = shop.presets(["4bit", "4bit-g64", "4BIT"])
    assert four.aliases == ("4bit-g64", "4bit")
    for name in ("Q4_K_M", "7bit", "4bit-g128"):
        with pytest.raises(PlanError):
            shop.presets([name])
    check_written(shop, four, tmp_path / "out")  # rows of 96 stay floats
    floats = {m.type for m in shop.matrices(four.plan)} - {"4bit-g64"}
    assert floats == {"BF16"}


def test_a_plan_of_another_model_is_refused(models: dict[str, Model], tmp_path: Path) -> None:
    (four,) = workshop(models["llama3"]).presets(["4bit"])
    with pytest.raises(PlanError, match="lm_head"):
        workshop(models["llama"]).write(four.plan, tmp_path / "out", is_fitted=False)
    with pytest.raises(PlanError, match="Calibrate"):
        workshop(models["llama"]).write(four.plan, tmp_path / "out", is_fitted=True)
    assert not (tmp_path / "out").exists()


def test_mlx_lm_loads_a_mix(models: dict[str, Model], measured: dict[str, Calibration], tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm", reason="there is no wheel of mlx for this system")
    shop = workshop(models["llama3"], calibration=measured["llama3"])
    mix = shop.mix(some_choice(shop, 4), str)
    shop.write(mix.plan, tmp_path / "mix", is_fitted=True, threads=1)
    with MLXProcess() as engine:
        loaded = engine.open(tmp_path / "mix")
        ids = np.arange(5, 21, dtype=np.int32)
        (logits,) = engine.logits([ids], first=0)
    assert 8 * loaded.tensor_bytes / models["llama3"].n_weights == mix.bpw
    assert logits.shape == (16, 512)
    assert np.isfinite(logits).all()


def test_the_target_names_and_commands(models: dict[str, Model]) -> None:
    target = MLX()
    assert all(target.knows(name) for name in (*TYPES, "4bit-g128", "mxfp4", "mixed_3_6"))
    assert not any(target.knows(name) for name in ("Q8_0", "F16", "int4", "4bit-g16", ""))
    assert target.label("4bit") == "mlx 4bit"
    assert target.output_name("SmolLM2-135M", "4bit") == "SmolLM2-135M-mlx-4bit"
    words = target.command("4bit", "source", "m-mlx-4bit", "i.gguf")
    assert " ".join(words) == "kvant quantize source --to mlx -t 4bit --imatrix i.gguf -o m-mlx-4bit"
    assert "--imatrix" not in target.command("4bit", "source", "out", None)
    for model in models.values():
        target.check(model)


def test_models_that_cannot_be_made_are_refused_at_once(models: dict[str, Model], tmp_path: Path) -> None:
    to_mlx(models["llama"], tmp_path / "made", type="4bit")
    with pytest.raises(PlanError, match="quantizing twice"):
        MLX().check(open_model(tmp_path / "made"))
    extra = {**models["llama"].tensors, "blk.0.unheard_of.weight": models["llama"].tensors["blk.0.attn_q.weight"]}
    with pytest.raises(UnsupportedModelError):
        MLX().check(dataclasses.replace(models["llama"], tensors=extra))


def test_memory_is_what_was_predicted_or_what_was_measured(models: dict[str, Model]) -> None:
    shop = workshop(models["llama"])
    (four,) = shop.presets(["4bit"])

    class Score:
        rss_bytes: int | None = None

    assert shop.memory_bytes(four, Score()) == four.ram.total_bytes  # type: ignore[arg-type]
    Score.rss_bytes = four.ram.total_bytes + 5
    assert shop.memory_bytes(four, Score()) == four.ram.total_bytes + 5  # type: ignore[arg-type]
