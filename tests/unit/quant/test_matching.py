"""What an importance file does for a plan: used, missing, unknown, and zeros that must not become weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kvant.dtypes import BLOCK_TYPES, F32
from kvant.errors import PlanError
from kvant.formats.gguf.reader import read_gguf
from kvant.kernels import decode
from kvant.metadata import string
from kvant.model import Model
from kvant.quant.importance import Entry, Importance, without_zero_runs, zero_runs
from kvant.quant.matching import check_fits, importance_remarks, match_importance, run_length, uses_importance
from kvant.quant.presets import plan_preset
from kvant.recipes.targets.gguf.write import predict_size, quantize
from kvant.tensors import array_tensor, n_rows, row_length

N = 512
NAMES = [f"blk.{i}.{stem}.weight" for i in range(2) for stem in ("attn_q", "ffn_down")]


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(0)
    names = ["token_embd.weight", *NAMES]
    tensors = {n: array_tensor(n, rng.standard_normal((8, N)).astype(np.float32), F32) for n in names}
    return Model(metadata={"general.architecture": string("test")}, tensors=tensors, path=Path("m.gguf"), files=())


@pytest.fixture(autouse=True)
def any_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine knows models of a few loose tensors."""
    monkeypatch.setattr("kvant.recipes.targets.gguf.write.check_loads", lambda *_: None)


def importance(*names: str, zeros: slice = slice(0)) -> Importance:
    sums = np.random.default_rng(1).random((1, N)).astype(np.float32) + 0.1
    sums[0, zeros] = 0
    entry = Entry(sums=sums, counts=np.ones(1, np.float32))
    return Importance(entries=dict.fromkeys(names, entry), source="i.dat", datasets=("a.txt",))


def test_all_is_well(model: Model) -> None:
    use = match_importance(importance(*NAMES), model, plan_preset(model, "Q4_K_M"))
    assert use.used == tuple(NAMES)
    assert use.missing == ("token_embd.weight",)  # as in most files
    assert use.remarks() == ()


def test_matrices_that_the_text_never_reached_are_said(model: Model) -> None:
    entries = {name: Entry(sums=np.zeros((1, N), np.float32), counts=np.zeros(1, np.float32)) for name in NAMES[:2]}
    given = Importance(entries={**importance(*NAMES).entries, **entries}, source="i.dat")
    (said,) = match_importance(given, model, plan_preset(model, "Q4_K_M")).remarks()
    assert f"never reached 2 matrices of 2 tensors (first {NAMES[0]})" in said


def test_half_is_said_with_the_first(model: Model) -> None:
    use = match_importance(importance(*NAMES[:2], "blk.9.attn_q.weight"), model, plan_preset(model, "Q4_K_M"))
    missing, unknown = use.remarks()
    assert "for 2 of 5 tensors (first blk.1.attn_q.weight)" in missing
    assert "1 of 3 entries (first blk.9.attn_q.weight) name no tensor" in unknown


@pytest.mark.parametrize("preset", ["Q4_K_M", "IQ2_XXS", "Q8_0"])
def test_a_file_that_fits_nothing_is_refused(preset: str, model: Model, tmp_path: Path) -> None:
    given = importance("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(PlanError, match=r"i\.dat: none of its 1 entries \(first model\.layers.*kvant calibrate m.gguf"):
        quantize(model, plan_preset(model, preset), tmp_path / "out.gguf", importance=given)


def test_the_command_that_is_told_keeps_a_path_with_spaces_whole(model: Model) -> None:
    spaced = dataclasses.replace(model, path=Path("my models/m.gguf"))
    with pytest.raises(PlanError, match=r"kvant calibrate 'my models/m\.gguf'$"):
        check_fits(importance("other"), spaced)


def test_types_that_need_importance_are_told_apart_from_no_file(model: Model, tmp_path: Path) -> None:
    plan = plan_preset(model, "IQ2_XXS", has_importance=True)
    with pytest.raises(PlanError, match=r"blk\.1\.attn_q\.weight: IQ2_XXS without .* i\.dat has none for it"):
        quantize(model, plan, tmp_path / "out.gguf", importance=importance(*NAMES[:2]))


def test_metadata_tell_what_was_used(model: Model, tmp_path: Path) -> None:
    for preset, entries in (("Q4_K_M", 3), ("Q8_0", None)):
        plan, given = plan_preset(model, preset), importance(*NAMES[:3], "blk.9.attn_q.weight")
        made = quantize(model, plan, tmp_path / f"{preset}.gguf", importance=given)
        assert read_gguf(Path(made.path)).get("quantize.imatrix.entries_count") == entries
        assert made.size_bytes == predict_size(model, plan, given)
        assert any("is not used" in remark for remark in made.remarks) == (entries is None)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "IQ3_S"])
@pytest.mark.parametrize("zeros", [slice(0, 256), slice(0, 16), slice(0, 32), slice(None)])
def test_channels_without_importance_keep_their_weights(kind: str, zeros: slice, model: Model, tmp_path: Path) -> None:
    given = importance(NAMES[0], zeros=zeros)
    plan = plan_preset(model, "F32", overrides=[(NAMES[0], kind)])
    made = quantize(model, plan, tmp_path / "out.gguf", importance=given)
    tensor = read_gguf(Path(made.path)).tensors[NAMES[0]]
    found = decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, row_length(tensor))
    source = model.tensors[NAMES[0]].read_bytes(0, 8).view(np.float32)
    part = slice(zeros.start, zeros.stop)
    error = np.sqrt(((found - source)[:, part] ** 2).mean()) / source.std()
    assert error < (0.5 if BLOCK_TYPES[kind].bpw > 3 else 0.7)  # 1 where all are zeros
    run = run_length(BLOCK_TYPES[kind])
    empty = int(zero_runs(given.entries[NAMES[0]].weights(), run).sum())
    assert any(f"zeros alone for {empty} blocks of 1 tensors (first {NAMES[0]})" in r for r in made.remarks) == (
        empty > 0
    )


def test_runs() -> None:
    weights = np.ones((2, 64), np.float32)
    weights[1, 32:] = 0
    assert zero_runs(weights, 32).tolist() == [[False, False], [False, True]]
    assert (without_zero_runs(weights, 32) == 1).all()
    weights[1, 40] = 5
    assert without_zero_runs(weights, 32) is weights


def test_types_that_look_at_importance() -> None:
    assert [t for t in ("Q8_0", "MXFP4", "TQ2_0", "F16", "Q1_0") if uses_importance(BLOCK_TYPES[t])] == []
    assert all(uses_importance(BLOCK_TYPES[t]) for t in ("Q4_0", "Q4_K", "IQ4_NL", "IQ1_M"))


def test_remarks_for_formats_of_their_own_types(model: Model) -> None:
    assert importance_remarks(model, None) == ()
    assert importance_remarks(model, importance(*NAMES)) == ()
    assert "for 3 of 5 tensors (first blk.0.ffn_down.weight)" in importance_remarks(model, importance(NAMES[0]))[0]
