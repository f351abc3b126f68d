"""ONNX as a target: what it predicts is what it writes, whatever the model, the plan and the threads."""

import dataclasses
import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from kvant.calibrate.statistics import Statistics
from kvant.devices.detect import detect
from kvant.devices.profiles import device_for
from kvant.errors import BudgetError, EngineError, LockError, MissingDependencyError, PlanError
from kvant.evaluate.base import identity
from kvant.evaluate.corpora import text_file
from kvant.files import cache_dir
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.curvature import Curvatures
from kvant.quant.importance import Entry, Importance
from kvant.recipes.convert.convert import convert
from kvant.recipes.goal import Budget
from kvant.recipes.measure.base import prepare_base
from kvant.recipes.measure.calibration import Calibration, calibrate
from kvant.recipes.output import digest_of, hashes, size_bytes
from kvant.recipes.rebuild.lock import LockedOutput, make_lock
from kvant.recipes.rebuild.rebuild import check_provenance, write_checked
from kvant.recipes.targets.base import Material, Target, Workshop
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.onnx.export import check_export
from kvant.recipes.targets.onnx.options import choices_of
from kvant.recipes.targets.onnx.origin import open_export
from kvant.recipes.targets.onnx.target import DTYPE, ONNX, ONNXWorkshop
from kvant.recipes.targets.onnx.write import quantize_decoder
from kvant.tensors import row_length
from kvant.testing.onnx_decoders import export_tiny
from kvant.testing.tiny_models import write_tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytestmark = pytest.mark.heavy

TEXT = "A line of a book that is long enough to be cut into windows, whatever its number, {}.\n"
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"num_hidden_layers": 2},
    "untied": {"num_hidden_layers": 2, "tie_word_embeddings": False, "intermediate_size": 320},
    "large": {"num_hidden_layers": 1, "vocab_size": 4608},  # codes of a MiB, which are aligned to pages
}
SLACK = 1500
"""Bytes that the bound of a file of these models may be above it, pages aside: 63 per tensor at most, and digits."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for all tests here, in use as soon as it is there: one statistics pass for a model."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("KVANT_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def shared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_HOME", str(home))


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:  # noqa: ARG001
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(TEXT.format(i) for i in range(150)))
    return path


def opened(directory: Path) -> Model:
    """Open a model whose export is in the cache."""
    model = open_model(directory)
    place = cache_dir("onnx") / identity(model.files)[:32]
    if not place.exists():
        export_tiny(directory, place)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, home: Path) -> dict[str, Model]:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("models")
    return {name: opened(write_tiny_model("llama", folder / name, **entries)) for name, entries in MODELS.items()}


@pytest.fixture(scope="module")
def calibrations(models: dict[str, Model], book: Path) -> dict[str, Calibration]:
    return {name: calibrate(model, str(book), windows=2, threads=1) for name, model in models.items()}


def workshop(
    model: Model, calibration: Calibration | None = None, importance: Importance | None = None,
    budget: Budget | None = None,
) -> ONNXWorkshop:  # fmt: skip
    machine = detect(measure=False)
    material = Material(
        model=model, machine=machine, device=device_for(None, machine), calibration=calibration, threads=1,
        importance=importance or (calibration.importance if calibration else None), budget=budget or Budget(),
    )  # fmt: skip
    return ONNX().open(material)


def importance_of(model: Model) -> Importance:
    rng = np.random.default_rng(1)
    entries = {
        name: Entry(sums=rng.random((1, t.shape[1])).astype(np.float32) ** 6, counts=np.ones(1, np.float32))
        for name, t in model.tensors.items()
        if len(t.shape) == 2 and "token_embd" not in name
    }
    return Importance(entries=entries, datasets=("words.txt",), n_chunks=1, chunk_size=64, source="words.gguf")


def some_choice(made: ONNXWorkshop, seed: int) -> dict[str, str]:
    """Return a choice at random."""
    chance = random.Random(seed)
    return {name: chance.choice(kinds).kind for name, kinds in made.options().items()}


def named(bpw: float) -> str:
    return f"kvant-{bpw:.2f}"


def written(made: ONNXWorkshop, candidate: Candidate, out: Path, threads: int = 1) -> Path:
    made.write(candidate.plan, out, is_fitted=candidate.is_fitted, threads=threads)
    return out


def weight_bytes(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def run(directory: Path) -> np.ndarray:
    """Return ONNX Runtime's logits of some tokens."""
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.arange(1, 9)[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float16) for i in session.get_inputs() if "past" in i.name
    }
    logits: np.ndarray = session.run(["logits"], feeds | past)[0]
    return logits


@pytest.mark.parametrize("how", ["plain", "importance", "calibrated"])
@pytest.mark.parametrize("name", list(MODELS))
def test_sizes_of_presets_are_exact_and_the_engine_loads_them(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path, name: str, how: str
) -> None:
    model = models[name]
    made = workshop(
        model,
        calibrations[name] if how == "calibrated" else None,
        importance_of(model) if how == "importance" else None,
    )
    presets = made.presets()
    assert [c.preset for c in presets] == ["MatMulNBits4_b128", "int4", "int8"] or name != "tied"
    assert [c.size_bytes for c in presets] == sorted(c.size_bytes for c in presets)
    assert [c.distortion for c in presets] == sorted((c.distortion for c in presets), reverse=True)
    assert {c.is_fitted for c in presets} == {how == "calibrated"}
    for candidate in presets:
        out = written(made, candidate, tmp_path / candidate.preset)
        assert candidate.size_bytes == weight_bytes(out)
        assert np.isfinite(run(out)).all()
        assert candidate.ram.weights_bytes == candidate.size_bytes
        stored = made.matrices(candidate.plan)
        assert 0.5 < sum(matrix.n_bytes for matrix in stored) / candidate.size_bytes < 1
        assert [matrix.type for matrix in stored] == list(candidate.plan.types.values())
        assert {matrix.name for matrix in stored} <= model.tensors.keys()
        assert 8 * sum(m.n_bytes for m in stored) / sum(m.n_weights for m in stored) < candidate.bpw


@pytest.mark.parametrize("name", list(MODELS))
def test_sizes_of_mixes_are_exact_and_their_bound_is_tight(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path, name: str
) -> None:
    made = workshop(models[name], calibrations[name])
    options = made.options()
    for seed in range(6):
        choice = some_choice(made, seed)
        candidate = made.mix(choice, named)
        assert candidate.preset == f"kvant-{candidate.bpw:.2f}"
        assert candidate.name == f"onnx {candidate.preset}"
        bound = made.rest_bytes + sum(
            o.n_bytes for key, kinds in options.items() for o in kinds if o.kind == choice[key]
        )
        large = sum(matrix.n_bytes >= 1 << 20 for matrix in made.matrices(candidate.plan))
        assert candidate.size_bytes <= bound <= candidate.size_bytes + SLACK + 4096 * large
        assert made.choice(candidate) == choice
        cost = sum(o.cost for key, kinds in options.items() for o in kinds if o.kind == choice[key])
        assert candidate.predicted_kld == pytest.approx(cost)
        if seed < 2:
            out = written(made, candidate, tmp_path / str(seed))
            assert candidate.size_bytes == weight_bytes(out)
            assert np.isfinite(run(out)).all()


def test_bytes_do_not_depend_on_threads(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path
) -> None:
    made = workshop(models["untied"], calibrations["untied"])
    candidate = made.mix(some_choice(made, 7), named)
    one, three = (written(made, candidate, tmp_path / str(n), threads=n) for n in (1, 3))
    assert hashes(one) == hashes(three)


def test_a_choice_is_known_again(models: dict[str, Model], calibrations: dict[str, Calibration]) -> None:
    made = workshop(models["tied"], calibrations["tied"])
    (int4,) = made.presets(["int4"])
    assert set((made.choice(int4) or {}).values()) == {"MatMulNBits4_b32", "MatMulNBits8_b32"}  # presets teach, too
    (others,) = made.presets(["MatMulNBits4_b32_sym"])
    assert made.choice(others) is None
    plain = workshop(models["tied"])
    assert plain.options() == {}
    assert plain.choice(plain.presets(["int4"])[0]) is None


def test_presets_are_what_quantize_makes(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path
) -> None:
    model, calibration, importance = models["tied"], calibrations["tied"], importance_of(models["tied"])
    for i, (known, weighed) in enumerate([(None, None), (None, importance), (calibration, None)]):
        made = workshop(model, known, weighed)
        (candidate,) = made.presets(["int4"])
        ours = written(made, candidate, tmp_path / f"ours{i}")
        done = quantize_decoder(
            model, "int4", tmp_path / f"theirs{i}", dtype=DTYPE, importance=weighed, threads=1,
            calibration=(lambda: calibration) if known else None,
        )  # fmt: skip
        assert hashes(ours) == hashes(tmp_path / f"theirs{i}")
        assert done.bpw == pytest.approx(candidate.bpw)


def test_a_size_is_made_use_of(models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path) -> None:
    """Room is not set aside for a page behind every matrix: only tensors of a MiB start at one."""
    made = workshop(models["tied"], calibrations["tied"])
    choice = some_choice(made, 3)
    candidate = made.mix(choice, named)
    done = quantize_decoder(
        models["tied"], "int4", tmp_path / "out", calibration=lambda: calibrations["tied"], dtype=DTYPE, threads=1,
        max_bytes=candidate.size_bytes + SLACK,
    )  # fmt: skip
    assert done.size_bytes <= candidate.size_bytes + SLACK
    assert done.predicted_kld is not None
    assert candidate.predicted_kld is not None
    assert done.predicted_kld <= candidate.predicted_kld
    with pytest.raises(BudgetError, match="the least possible"):
        quantize_decoder(
            models["tied"], "int4", tmp_path / "no", calibration=lambda: calibrations["tied"], max_bytes=10**5
        )


def test_matrices_that_calibration_knows_nothing_of_keep_8_bits(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path
) -> None:
    """At no cost the smallest blocks would be taken for them."""
    known = calibrations["tied"].curvatures
    some = [name for name in known.names if not name.endswith("ffn_down.weight")]
    calibration = dataclasses.replace(
        calibrations["tied"], curvatures=dataclasses.replace(known, names=some), directory=tmp_path
    )
    made = workshop(models["tied"], calibration)
    assert "blk.0.ffn_down.weight" not in made.options()
    least = {name: min(kinds, key=lambda o: o.n_bytes).kind for name, kinds in made.options().items()}
    candidate = made.mix(least, named)
    unknown = {name: kind for name, kind in candidate.plan.types.items() if "down_proj" in name}
    assert list(unknown.values()) == ["MatMulNBits8_b32"] * 2
    assert set(candidate.plan.types.values()) == {*unknown.values(), *least.values()}
    assert candidate.size_bytes == weight_bytes(written(made, candidate, tmp_path / "out"))
    assert made.choice(candidate) == least
    other = msgspec.structs.replace(
        candidate.plan, types=candidate.plan.types | dict.fromkeys(unknown, "MatMulNBits4_b32")
    )
    assert made.choice(msgspec.structs.replace(candidate, plan=other)) is None


class Even:
    """Statistics by which all channels matter alike."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def risk(self, name: str) -> np.ndarray:
        return np.eye(row_length(self.model.tensors[name]), dtype=np.float32)


def test_a_part_of_a_tensor_costs_its_share(calibrations: dict[str, Calibration], tmp_path: Path) -> None:
    """Phi-3 stores gate and up as one tensor, which exporters split; attention's three stay one matrix."""
    model = opened(write_tiny_model("phi3", tmp_path / "phi3", num_hidden_layers=1))
    even, names = Even(model), [name for name, tensor in model.tensors.items() if len(tensor.shape) == 2]
    calibration = dataclasses.replace(
        calibrations["tied"], directory=tmp_path, statistics=cast("Statistics", even),
        curvatures=Curvatures(names=names, hessian=even.risk, sha256="", n_tokens=1024),
    )  # fmt: skip
    options = choices_of(open_export(model), calibration, "F16", threads=1).options
    costs = kept_costs(calibration)
    for gate, up in zip(options["blk.0.ffn_gate.weight"], options["blk.0.ffn_up.weight"], strict=True):
        assert gate.cost == up.cost
        assert gate.cost + up.cost == pytest.approx(costs["blk.0.ffn_up.weight"][gate.kind])
    for option in options["blk.0.attn_q.weight"]:
        assert option.cost == pytest.approx(costs["blk.0.attn_qkv.weight"][option.kind])


def test_fused_matrices_cost_the_sum_of_their_parts(
    models: dict[str, Model], calibrations: dict[str, Calibration]
) -> None:
    options = workshop(models["tied"], calibrations["tied"]).options()
    costs = kept_costs(calibrations["tied"])
    parts = [f"blk.0.attn_{part}.weight" for part in "qkv"]
    for option in options[parts[0]]:
        assert option.cost == pytest.approx(sum(costs[part][option.kind] for part in parts))
    assert not set(parts[1:]) & options.keys()


def kept_costs(calibration: Calibration) -> dict[str, dict[str, float]]:
    """Return what each kind was measured to cost each tensor, which lies beside the statistics."""
    (stored,) = calibration.directory.glob("rounding-*.json")
    return msgspec.json.decode(stored.read_bytes(), type=dict[str, dict[str, float]])


def test_key_stands_for_all_that_decides_bytes(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path
) -> None:
    model = opened(write_tiny_model("llama", tmp_path / "own", num_hidden_layers=1))
    calibration = calibrations["tied"]
    made = workshop(model)
    four, eight = made.presets(["int4", "int8"])
    renamed = msgspec.structs.replace(four, plan=msgspec.structs.replace(four.plan, preset="other"))
    keys = {
        made.key(four), made.key(eight), made.key(renamed), workshop(models["tied"]).key(four),
        workshop(model, None, importance_of(model)).key(four),
        workshop(model, calibration).key(msgspec.structs.replace(four, is_fitted=True)),
    }  # fmt: skip
    assert len(keys) == 6
    assert workshop(open_model(model.path)).key(four) == made.key(four)
    place = cache_dir("onnx") / identity(model.files)[:32]
    config = place / "genai_config.json"
    config.write_text(config.read_text().replace("2048", "1024"))
    assert workshop(model).key(four) not in keys


def test_made_once_and_forgotten(models: dict[str, Model]) -> None:
    made = workshop(models["tied"])
    (candidate,) = made.presets(["int4"])
    first = made.make(candidate, threads=1)
    stamp = (first / "model.onnx").stat().st_mtime_ns
    assert made.make(candidate, threads=1) == first
    assert (first / "model.onnx").stat().st_mtime_ns == stamp
    made.forget(candidate)
    assert not first.exists()


def test_presets_that_come_to_the_same_are_one(models: dict[str, Model]) -> None:
    made = workshop(models["tied"])
    (one,) = made.presets(["int8", "MatMulNBits8_b32"])
    assert (one.preset, one.aliases) == ("int8", ("MatMulNBits8_b32",))
    with pytest.raises(PlanError, match="Q4_K_M"):
        made.presets(["Q4_K_M"])
    with pytest.raises(PlanError, match="would not be used"):
        workshop(models["tied"], None, importance_of(models["tied"])).presets(["MatMulNBits4_b16"])


def test_measured_in_onnx_runtime(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    _, base = prepare_base(models["tied"].path, text=text_file(text), context=64, chunks=2, threads=1)
    made = workshop(models["tied"], calibrations["tied"])
    four, eight = made.presets(["int4", "int8"])
    scores = [made.measure(made.make(c, threads=1), base, threads=1) for c in (four, eight)]
    assert scores[1].kld_mean < scores[0].kld_mean < 0.5
    assert [s.size_bytes for s in scores] == [four.size_bytes, eight.size_bytes]
    assert [s.bpw for s in scores] == pytest.approx([four.bpw, eight.bpw])
    rss = scores[0].rss_bytes
    assert rss is not None
    assert made.memory_bytes(four, scores[0]) == max(rss, four.ram.total_bytes)
    assert made.memory_bytes(four, msgspec.structs.replace(scores[0], rss_bytes=None)) == four.ram.total_bytes
    assert made.memory_bytes(four, msgspec.structs.replace(scores[0], rss_bytes=10**12)) == 10**12


def test_made_again_from_a_lock_unless_the_export_is_another(
    models: dict[str, Model], calibrations: dict[str, Calibration], tmp_path: Path
) -> None:
    model = models["untied"]
    made = workshop(model, calibrations["untied"])
    candidate = made.mix(some_choice(made, 5), named)
    out = written(made, candidate, tmp_path / "out")
    files = hashes(out)
    output = LockedOutput(file="out", size_bytes=size_bytes(out), sha256=digest_of(out, files), files=files)
    lock = make_lock(
        model, candidate.plan, calibrations["untied"], None, output, is_fitted=True, target="onnx",
        provenance=made.provenance(),
    )  # fmt: skip
    again = workshop(open_model(model.path), calibrations["untied"])
    check_provenance(lock, again)
    write_checked(lock, again, tmp_path / "again", 3, made.material.progress)
    assert hashes(tmp_path / "again") == files
    place = cache_dir("onnx") / identity(model.files)[:32]
    kept = shutil.copytree(place, tmp_path / "kept")
    import onnx

    graph = onnx.load(place / "model.onnx", load_external_data=False)
    graph.producer_name, graph.producer_version = "another", "2.0"
    (place / "model.onnx").write_bytes(graph.SerializeToString())
    try:
        with pytest.raises(LockError, match=r"ONNX export made by: another 2\.0 is not the lock's absent"):
            check_provenance(lock, workshop(model, calibrations["untied"]))
        unsaid = msgspec.structs.replace(lock, provenance=lock.provenance | {"ONNX export made by": "another 2.0"})
        with pytest.raises(LockError, match=r"ONNX export's model\.onnx: \w+ is not the lock's"):
            check_provenance(unsaid, workshop(model, calibrations["untied"]))
    finally:
        shutil.rmtree(place)
        shutil.copytree(kept, place)


def test_limits_and_words(models: dict[str, Model]) -> None:
    model = models["tied"]
    made = workshop(model, budget=Budget(max_size_bytes=10**6, max_ram_bytes=10**9, min_speed_tok_s=5))
    assert made.limits.max_file_bytes == 10**6
    assert made.limits.max_resident_bytes is not None
    assert made.limits.max_resident_bytes < 10**9
    assert made.limits.max_seconds is None
    target: Target = ONNX()
    shop: Workshop = made
    (four,) = shop.presets(["int4"])
    assert [name for name in ("int4", "INT8", "MatMulNBits4_b64_sym", "4bit", "Q4_K_M") if target.knows(name)] == [
        "int4", "INT8", "MatMulNBits4_b64_sym",
    ]  # fmt: skip
    assert target.label("int4") == four.name == "onnx int4"
    assert target.output_name("tiny", "int4") == "tiny-onnx-int4"
    words = target.command("int4", "tiny", "o", "i.gguf")
    assert " ".join(words) == "kvant quantize tiny --to onnx -t int4 --dtype F16 --imatrix i.gguf -o o"
    assert made.continuation(four, None, threads=1) is None
    assert made.engine_floor([]) == 0
    assert four.speed_tok_s > made.presets(["int8"])[0].speed_tok_s
    assert made.remarks(four) == ()
    less = importance_of(model)
    entries = {name: entry for name, entry in less.entries.items() if "ffn_up" not in name}
    weighed = workshop(model, None, dataclasses.replace(less, entries=entries))
    assert any("words.gguf: has no importance for 2 of" in said for said in weighed.remarks(four))


def test_checked_before_hours_of_work(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVANT_ONNX_PYTHON", raising=False)
    ONNX().check(models["tied"])
    with pytest.raises(MissingDependencyError, match="KVANT_ONNX_PYTHON"):
        ONNX().check(open_model(write_tiny_model("llama", tmp_path / "other", seed=5)))


@pytest.mark.parametrize(
    ("kind", "dtype", "sha256"),
    [
        ("int4", "F32", "033a32fd30a661953061980d141ec8cbbc42752eabd779174e79cecf92b2cc63"),
        ("int4", "F16", "dd8773442abb7b531ea689fedb457a1637eba3eea71a85b5299406602a299dad"),
        ("int8", "F16", "6d20dc5000147e2bc252720d197781e05ac2b2bcbed759631323dafde018b853"),
        ("int2", "F32", "f33ce27e948d8d1318ef57098e3983c4d839db0f4312c5a47028104caec9be89"),
        ("MatMulNBits4_b64_sym", "F16", "9a14ecd271a738aa7016d6f0608ef37f07b7095e250f770d8f16a9c576e32829"),
    ],
)
def test_weights_keep_their_bytes(tmp_path: Path, kind: str, dtype: str, sha256: str) -> None:
    model = opened(write_tiny_model("llama", tmp_path / "tiny"))
    quantize_decoder(model, kind, tmp_path / "out", dtype=dtype, threads=1)  # type: ignore[arg-type]
    assert hashlib.sha256((tmp_path / "out" / "model.onnx.data").read_bytes()).hexdigest() == sha256


def test_an_export_predicts_as_its_model(models: dict[str, Model], tmp_path: Path) -> None:
    right = export_tiny(models["tied"].path, tmp_path / "right")
    check_export(right, models["tied"], "a builder")
    convert(models["tied"], tmp_path / "few.gguf", to="gguf", type="Q8_0")
    check_export(right, open_model(tmp_path / "few.gguf"), "a builder")  # eight bits of these weights lose less
    wrong = open_model(write_tiny_model("llama", tmp_path / "other", seed=7, **MODELS["tied"]))
    with pytest.raises(EngineError, match=r"what a builder makes predicts other tokens"):
        check_export(right, wrong, "a builder")
