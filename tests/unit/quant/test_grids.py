"""Tensors in the type that holds them: found by samples, proven whole; what a plan loses that rounds a grid again."""

from pathlib import Path

import numpy as np
import pytest

from kvant.devices.profiles import PROFILES
from kvant.dtypes import BF16, F32
from kvant.errors import FormatError, PlanError
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.open import open_model
from kvant.kernels import decode
from kvant.model import Model
from kvant.quant.grids import hold, kept_tensors, loss_again, may_keep, sample
from kvant.quant.presets import plan_preset
from kvant.recipes.measure.base import f32_file
from kvant.recipes.targets.gguf.presets import make_candidates
from kvant.recipes.targets.gguf.write import quantize
from kvant.tensors import LazyTensor, Tensor, array_tensor, n_rows
from kvant.testing.tiny_models import write_tiny_model
from quantized_files import half, quantize_files


def tiny(directory: Path, kind: str) -> Model:
    write_tiny_model("llama", directory, num_hidden_layers=1, intermediate_size=256)
    quantize_files(directory, kind)
    return open_model(directory)


def stored(values: np.ndarray) -> LazyTensor:
    """A matrix of bfloat16."""
    return array_tensor("w.weight", (values.view(np.uint32) >> 16).astype(np.uint16), BF16)


def values(tensor: Tensor) -> np.ndarray:
    return decode(tensor.read_bytes(0, n_rows(tensor)), tensor.block_type, tensor.shape[-1])


def gridded(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = half(rng.uniform(0.001, 0.01, (64, 8, 1)), "BF16")
    return half((rng.integers(-7, 8, (64, 8, 32)) * steps).reshape(64, 256), "BF16")


def test_one_odd_block_in_a_tensor_is_seen_though_samples_miss_it() -> None:
    block = gridded()
    assert hold(stored(block)).grid.kind == "Q4_0"
    rng = np.random.default_rng(1)
    many = np.tile(block, (64, 1))
    many[1234, 64:96] = half(rng.standard_normal(32), "BF16")
    tensor = stored(many)
    likely, held = sample(tensor), hold(tensor)
    assert likely is not None
    assert likely.holds
    assert held.grid.kind == "BF16"
    assert held.missed is not None
    assert (held.missed.kind, held.missed.n_blocks - held.missed.n_exact) == ("Q4_0", 1)
    assert np.array_equal(held.tensor.read_bytes(0, 64), tensor.read_bytes(0, 64))


def test_genuine_weights_and_zeros_lie_on_no_grid() -> None:
    genuine = half(np.random.default_rng(2).standard_normal((64, 256)), "BF16")
    for drawn in (genuine, np.zeros((64, 256), np.float32), np.ones((64, 256), np.float32)):
        assert sample(stored(drawn)) is None
    assert sample(array_tensor("w.weight", np.zeros((0, 256), np.float32), F32)) is None


def test_a_float_that_holds_all_is_the_smallest() -> None:
    drawn = half(np.random.default_rng(3).standard_normal((40, 64)), "BF16")
    assert hold(array_tensor("w.weight", drawn, F32)).grid.kind == "BF16"
    assert hold(array_tensor("w.weight", half(drawn * 1.001), F32)).grid.kind == "F16"
    drawn[39, 63] = 1 + 2.0**-20
    assert hold(array_tensor("w.weight", drawn, F32)).grid.kind == "F32"


@pytest.mark.parametrize("kind", ["gptq-sym", "qat", "mxfp4"])
def test_quantizing_with_keep_moves_no_weight(kind: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "m", kind)
    assert may_keep(model)
    quantize(model, "keep", tmp_path / "out.gguf")
    written = read_gguf(tmp_path / "out.gguf")
    assert written.get("kvant.preset") == "keep"
    for name, tensor in model.tensors.items():
        one, other = values(tensor), values(written.tensors[name])
        assert np.array_equal(one, half(other, "BF16") if tensor.block_type == BF16 else other), name


def test_rounding_a_grid_again_is_said_with_what_it_moves(tmp_path: Path) -> None:
    model = tiny(tmp_path / "m", "gptq-sym")
    said = loss_again(model, plan_preset(model, "Q4_K_M").types)
    assert "GPTQ int4-g128" in said
    assert "as Q4_K they are rounded once more" in said
    result = quantize(model, "Q4_K_M", tmp_path / "out.gguf")
    assert any("rounds nothing" in remark for remark in result.remarks)
    assert not any("rounds nothing" in remark for remark in quantize(model, "keep", tmp_path / "k.gguf").remarks)
    plain = open_model(write_tiny_model("llama", tmp_path / "plain", num_hidden_layers=1))
    assert not loss_again(plain, plan_preset(plain, "Q4_0").types)


def test_keep_is_refused_where_nothing_lies_on_a_grid(tmp_path: Path) -> None:
    plain = open_model(write_tiny_model("llama", tmp_path / "plain", num_hidden_layers=1))
    assert not may_keep(plain)
    assert not kept_tensors(plain)
    with pytest.raises(PlanError, match=r"none of these does.*kvant advise"):
        plan_preset(plain, "keep")
    with pytest.raises(PlanError, match="no option can give another"):
        plan_preset(tiny(tmp_path / "m", "qat"), "keep", pure=True)


def test_the_exact_variant_is_a_candidate_of_its_own_and_lossless_by_prediction(tmp_path: Path) -> None:
    for kind in ("gptq-sym", "qat"):
        found = {c.preset: c for c in make_candidates(tiny(tmp_path / kind, kind), PROFILES["phone-6gb"], context=512)}
        assert found["keep"].distortion < found["Q8_0"].distortion / 10 or found["keep"].distortion < 1e-4
        assert found["keep"].size_bytes < found["Q8_0"].size_bytes
    plain = open_model(write_tiny_model("llama", tmp_path / "plain", num_hidden_layers=1))
    assert "keep" not in {c.preset for c in make_candidates(plain, PROFILES["phone-6gb"], context=512)}


def test_a_model_published_in_a_grid_is_its_own_base_and_a_k_quant_is_not(tmp_path: Path) -> None:
    model = tiny(tmp_path / "m", "mxfp4")
    quantize(model, "keep", tmp_path / "mxfp4.gguf")
    file, _ = f32_file(tmp_path / "mxfp4.gguf")
    assert file == tmp_path / "mxfp4.gguf"
    quantize(model, "Q4_K_M", tmp_path / "q4.gguf")
    with pytest.raises(FormatError, match="no full-precision base"):
        f32_file(tmp_path / "q4.gguf")
    base, _ = f32_file(model)
    assert all(t.block_type == F32 for t in read_gguf(base).tensors.values())
