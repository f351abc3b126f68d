"""Quantized checkpoints decoded here and by the libraries that define them (compressed-tensors, bitsandbytes, ...).

What has no package of its own that runs without a GPU (GPTQ, AWQ, ModelOpt) is compared with its published formula in
torch. Needs those packages, which the ordinary environment has not: `pip install compressed-tensors bitsandbytes`.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.formats.huggingface.quantized.base import Checkpoint, Layer
from kvant.formats.huggingface.quantized.schemes import SCHEMES
from kvant.formats.safetensors.reader import read_safetensors
from kvant.kernels import decode
from kvant.tensors import n_rows

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

ROWS, N = 48, 256
PATH = "model.layers.0.mlp.down_proj"


def layer_of(tmp_path: Path, tensors: dict[str, Any], **settings: Any) -> Layer:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(read_safetensors(tmp_path / "model.safetensors"), settings, str(tmp_path))
    (layer,) = [layer for find in SCHEMES.values() for layer in find(checkpoint)]
    return layer


def decoded(layer: Layer) -> np.ndarray:
    """The layer in ranges of odd lengths, so that groups and words are cut."""
    rows = n_rows(layer.tensor())
    cuts = [0, 1, 6, 9, 40, rows]
    return np.concatenate([layer.rows(a, b) for a, b in pairwise(cuts)]).reshape(layer.shape)


def weights(seed: int = 0, rows: int = ROWS, n: int = N) -> Any:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)) * 0.05


def scheme(**arguments: Any) -> Any:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    return quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**arguments))


def compressed(compressor: str, args: dict[str, Any], scale: Any, zero: Any = None, **more: Any) -> Any:
    compressors = pytest.importorskip("compressed_tensors.compressors.base")
    asked, kind = scheme(**args), compressors.BaseCompressor.get_value_from_registry(compressor)
    state = {"weight": weights(), "weight_scale": scale, **more}
    if zero is not None:
        state["weight_zero_point"] = zero
    packed = kind.compress(state, asked)
    wanted = kind.decompress(dict(packed), asked)["weight"].float().numpy()
    return {f"{PATH}.{name}": tensor for name, tensor in packed.items()}, wanted


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(bits: int, group: int | None, symmetric: bool, tmp_path: Path) -> None:
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric,
            "strategy": "group" if group else "channel", **({"group_size": group} if group else {})}  # fmt: skip
    groups = weights().reshape(ROWS, -1, group or N)
    scale = (groups.abs().amax(-1) / (2 ** (bits - 1) - 1)).to(torch.bfloat16).float()
    zero = None if symmetric else torch.randint(-3, 4, scale.shape, dtype=torch.int8)
    packed, wanted = compressed("pack-quantized", args, scale, zero)
    layer = layer_of(tmp_path, packed)
    assert layer.kind.startswith(f"compressed-tensors int{bits}")
    assert np.array_equal(decoded(layer), wanted)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_int_quantized(strategy: str, tmp_path: Path) -> None:
    scale = weights().abs().amax(1, keepdim=True) / 127
    scale = scale.amax().reshape(1) if strategy == "tensor" else scale
    packed, wanted = compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": strategy}, scale)
    assert np.array_equal(decoded(layer_of(tmp_path, packed)), wanted)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_float_quantized(strategy: str, tmp_path: Path) -> None:
    scale = weights().abs().amax(1, keepdim=True) / 448
    scale = scale.amax().reshape(1) if strategy == "tensor" else scale
    packed, wanted = compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": strategy}, scale)
    layer = layer_of(tmp_path, packed)
    assert layer.kind == f"FP8 E4M3 per {strategy}"
    assert np.array_equal(decoded(layer), wanted)


def test_nvfp4(tmp_path: Path) -> None:
    whole = 448 * 6 / weights().abs().amax()
    scale = (weights().reshape(ROWS, -1, 16).abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn).float()
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
            "scale_dtype": torch.float8_e4m3fn}  # fmt: skip
    packed, wanted = compressed("nvfp4-pack-quantized", args, scale, weight_global_scale=whole.reshape(1))
    assert np.allclose(decoded(layer_of(tmp_path, packed)), wanted, rtol=2**-8, atol=0)  # the library gives bfloat16


def test_mxfp4_of_transformers(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 16, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 132, (3, 16, 4), dtype=torch.uint8, generator=generator)
    wanted = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(-1, -2).numpy()
    layer = layer_of(tmp_path, {"x.gate_up_proj_blocks": blocks, "x.gate_up_proj_scales": scales})
    assert (layer.name, layer.shape) == ("x.gate_up_proj.weight", (3, 16, 128))
    assert np.array_equal(decoded(layer), wanted)
    assert layer.packed is not None
    ours = decode(layer.packed.read_bytes(0, 48), "MXFP4", 128).reshape(layer.shape)
    assert np.array_equal(ours, wanted)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_four_bits(kind: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(weights(rows=512), quant_type=kind, compress_statistics=nested)
    wanted = functional.dequantize_4bit(codes, state).float().numpy()
    parts = {f"{PATH}.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    layer = layer_of(tmp_path, {f"{PATH}.weight": codes, **parts})
    assert layer.kind == f"bitsandbytes {kind.upper()}-g64"
    assert np.allclose(decoded(layer), wanted, rtol=0 if not nested else 1e-6, atol=0)


def test_bitsandbytes_int8(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, magnitude, _ = functional.int8_vectorwise_quant(weights().half())
    wanted = functional.int8_vectorwise_dequant(codes, magnitude).numpy()
    layer = layer_of(tmp_path, {f"{PATH}.weight": codes, f"{PATH}.SCB": magnitude})
    assert np.array_equal(decoded(layer), wanted)


def pack_rows(codes: Any, bits: int) -> Any:
    """Codes of consecutive rows into words, int32 [rows * bits / 32, n]: AutoGPTQ's `qweight`."""
    grouped = codes.reshape(codes.shape[0] * bits // 32, 32 // bits, -1).to(torch.int64)
    words = (grouped << (torch.arange(0, 32, bits).reshape(1, -1, 1))).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("desc_act", [False, True])
def test_gptq(bits: int, form: str, desc_act: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, (N, ROWS), generator=generator)
    zeros = torch.randint(1, 1 << bits, (N // 64, ROWS), generator=generator)
    scales = (torch.rand(N // 64, ROWS, generator=generator) * 0.01 + 0.001).half()
    order = torch.arange(N) // 64
    order = order[torch.randperm(N, generator=generator)] if desc_act else order
    wanted = (scales[order].float() * (codes - zeros[order]).float()).T.numpy()
    stored = zeros - int(form == "gptq")
    layer = layer_of(
        tmp_path,
        {f"{PATH}.qweight": pack_rows(codes, bits), f"{PATH}.qzeros": pack_rows(stored.T, bits).T,
         f"{PATH}.scales": scales, f"{PATH}.g_idx": order.to(torch.int32)},
        checkpoint_format=form, bits=bits,
    )  # fmt: skip
    assert layer.kind == f"GPTQ int{bits}-g64{' desc_act' if desc_act else ''}"
    assert np.array_equal(decoded(layer), wanted)


def test_awq(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (N, ROWS), generator=generator)
    zeros = torch.randint(0, 16, (N // 64, ROWS), generator=generator)
    scales = (torch.rand(N // 64, ROWS, generator=generator) * 0.01 + 0.001).half()
    wanted = ((codes - zeros.repeat_interleave(64, 0)).float() * scales.float().repeat_interleave(64, 0)).T.numpy()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # awq/utils/packing_utils.py AWQ_ORDER

    def pack(levels: Any) -> Any:
        return pack_rows(levels.reshape(len(levels), -1, 8)[..., order].reshape(len(levels), -1).T, 4).T

    layer = layer_of(
        tmp_path, {f"{PATH}.qweight": pack(codes), f"{PATH}.qzeros": pack(zeros), f"{PATH}.scales": scales}
    )
    assert layer.kind == "AWQ int4-g64"
    assert np.array_equal(decoded(layer), wanted)


@pytest.mark.parametrize("scale_type", ["float32", "bfloat16", "float8_e8m0fnu"])
def test_fp8_blocks(scale_type: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(9)
    codes = torch.randn(200, 320, generator=generator).to(torch.float8_e4m3fn)
    scale = (torch.rand(2, 3, generator=generator) * 0.01).to(getattr(torch, scale_type))
    spread = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :320]
    layer = layer_of(
        tmp_path, {f"{PATH}.weight": codes, f"{PATH}.weight_scale_inv": scale}, weight_block_size=[128, 128]
    )
    assert layer.kind == "FP8 E4M3 128x128"
    assert np.array_equal(layer.rows(100, 190), (codes.float() * spread).numpy()[100:190])
