"""Tiny models as other tools quantize them, written by the formats' descriptions with NumPy alone: nothing of kvant's.

Each function rounds the matrices of the layers of a tiny model and gives its tensors, the entry of config.json, and the
floats that the weights then stand for.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Saved(NamedTuple):
    """An array of a type that NumPy has not: its name in safetensors, and its bits."""

    dtype: str
    bits: np.ndarray


Parts = dict[str, np.ndarray | Saved]

NAMES = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "int64": "I64", "uint8": "U8"}


class Rounded(NamedTuple):
    """A matrix in a tool's layout: its tensors by suffix, and the floats that they stand for."""

    parts: Parts
    values: np.ndarray


class Kind(NamedTuple):
    """A way of quantizing: how it rounds a matrix, and what config.json says."""

    round: Callable[[np.ndarray], Rounded]
    entry: dict[str, Any]


def quantize_files(directory: Path, kind: str) -> dict[str, np.ndarray]:
    """Quantize a tiny model of one file in place.

    Returns:
        The floats of each matrix that was quantized, by its name in a plain checkpoint.
    """
    path, config = directory / "model.safetensors", directory / "config.json"
    found: Parts = {}
    values = {}
    for name, saved in read(path).items():
        if "proj.weight" not in name:
            found[name] = saved
            continue
        done = KINDS[kind].round((saved.bits.astype(np.uint32) << 16).view(np.float32))
        stem = name.removesuffix(".weight")
        found |= {f"{stem}{suffix}": part for suffix, part in done.parts.items()}
        values[name] = done.values
    write(path, found)
    entry = KINDS[kind].entry
    if entry:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": entry}))
    return values


def read(path: Path) -> dict[str, Saved]:
    """The tensors of a file of bfloat16."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length :]
    return {
        name: Saved(e["dtype"], np.frombuffer(data[slice(*e["data_offsets"])], np.uint16).reshape(e["shape"]))
        for name, e in header.items()
    }


def write(path: Path, tensors: Parts) -> None:
    """Write a file of tensors of any type."""
    header, blobs, at = {}, [], 0
    for name, part in tensors.items():
        saved = part if isinstance(part, Saved) else Saved(NAMES[part.dtype.name], part)
        blob = np.ascontiguousarray(saved.bits).tobytes()
        header[name] = {"dtype": saved.dtype, "shape": list(saved.bits.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def bf16(x: np.ndarray) -> Saved:
    raw = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return Saved("BF16", (raw + 0x7FFF + (raw >> 16 & 1) >> 16).astype(np.uint16))


E4M3 = np.array(
    [m * 2.0**-9 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)], np.float32
)[:127]
"""The values of codes 0 to 126."""


def e4m3(x: np.ndarray) -> tuple[Saved, np.ndarray]:
    """The nearest codes, and what they stand for."""
    between = (E4M3[1:] + E4M3[:-1]) / 2
    codes = np.searchsorted(between, np.abs(x)).astype(np.uint8)
    return Saved("F8_E4M3", codes | (x < 0).astype(np.uint8) << 7), np.where(x < 0, -E4M3[codes], E4M3[codes])


def half(x: np.ndarray, kind: str = "F16") -> np.ndarray:
    """Values rounded to a type of 16 bits."""
    if kind == "BF16":
        return (bf16(x).bits.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def groups(x: np.ndarray, size: int) -> np.ndarray:
    return x.reshape(len(x), -1, size)


def symmetric(x: np.ndarray, size: int, levels: int, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes -levels - 1 .. levels and scales, [rows, n] and [rows, groups]."""
    parts = groups(x, size)
    step = half(np.abs(parts).max(-1) / levels, scale)
    codes = np.clip(np.rint(parts / step[..., None]), -levels - 1, levels)
    return codes.reshape(x.shape).astype(np.int32), step


def affine(x: np.ndarray, size: int, levels: int, scale: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and zero points 0 .. levels, and scales."""
    parts = groups(x, size)
    low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    step = half((high - low) / levels, scale)
    zero = np.clip(np.rint(-low / step), 1, levels)
    codes = np.clip(np.rint(parts / step[..., None]) + zero[..., None], 0, levels)
    return codes.reshape(x.shape).astype(np.int32), zero.astype(np.int32), step


def product(levels: np.ndarray, step: np.ndarray) -> np.ndarray:
    parts = levels.reshape(*step.shape, -1).astype(np.float32)
    return np.asarray(parts * step[..., None]).reshape(levels.shape)


def pack(codes: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Codes along an axis into int32 words, lowest bits first."""
    moved = np.moveaxis(codes, axis, -1)
    words = moved.reshape(*moved.shape[:-1], -1, 32 // bits).astype(np.uint64) << np.arange(
        0, 32, bits, dtype=np.uint64
    )
    return np.moveaxis(words.sum(-1).astype(np.uint32).view(np.int32), -1, axis)


def gptq(x: np.ndarray, *, sym: bool) -> Rounded:
    if sym:
        codes, step = symmetric(x, 128, 7, "F16")
        zero = np.full(step.shape, 8)
        codes = codes + 8
    else:
        codes, zero, step = affine(x, 128, 15, "F16")
    values = product(codes - np.repeat(zero, 128, axis=1), step)
    g_idx = (np.arange(x.shape[1]) // 128).astype(np.int32)
    return Rounded(
        {".qweight": pack(codes.T, 4, 0), ".qzeros": pack(zero.T - 1, 4, 1), ".scales": step.T.astype(np.float16),
         ".g_idx": g_idx}, values,
    )  # fmt: skip


def awq(x: np.ndarray) -> Rounded:
    codes, zero, step = affine(x, 128, 15, "F16")
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # nibble i holds column order[i] of eight

    def packed(levels: np.ndarray) -> np.ndarray:
        return pack(levels.T.reshape(levels.shape[1], -1, 8)[..., order].reshape(levels.shape[1], -1), 4, 1)

    values = product(codes - np.repeat(zero, 128, axis=1), step)
    return Rounded({".qweight": packed(codes), ".qzeros": packed(zero), ".scales": step.T.astype(np.float16)}, values)


def pack_quantized(x: np.ndarray, *, bits: int, size: int) -> Rounded:
    codes, step = symmetric(x, size, 2 ** (bits - 1) - 1, "BF16")
    return Rounded(
        {".weight_packed": pack(codes + 2 ** (bits - 1), bits, 1), ".weight_scale": bf16(step),
         ".weight_shape": np.array(x.shape, np.int64)}, product(codes, step),
    )  # fmt: skip


def int_quantized(x: np.ndarray) -> Rounded:
    codes, step = symmetric(x, x.shape[1], 127, "BF16")
    parts: Parts = {".weight": codes.astype(np.int8), ".weight_scale": bf16(step)}
    return Rounded(parts, product(codes, step))


def fp8(x: np.ndarray, *, power: bool) -> Rounded:
    tiles = x.reshape(x.shape[0] // 128, 128, x.shape[1] // 128, 128)
    scale = (np.abs(tiles).max((1, 3)) / 448).astype(np.float32)
    scale = np.exp2(np.ceil(np.log2(scale))).astype(np.float32) if power else scale
    spread = scale.repeat(128, 0).repeat(128, 1)
    codes, values = e4m3(x / spread)
    return Rounded({".weight": codes, ".weight_scale_inv": scale}, values * spread)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def nearest(x: np.ndarray) -> np.ndarray:
    codes = np.abs(x[..., None] - E2M1[:8]).argmin(-1)
    return np.asarray(np.where(x < 0, codes + 8, codes), np.uint8)


def pairs(codes: np.ndarray) -> np.ndarray:
    return np.asarray(codes[..., ::2] | codes[..., 1::2] << 4)


def mxfp4(x: np.ndarray) -> Rounded:
    parts = groups(x, 32)
    exponent = np.floor(np.log2(np.abs(parts).max(-1))).astype(np.int32) - 2
    scale = np.exp2(exponent).astype(np.float32)
    codes = nearest(parts / scale[..., None])
    packed = pairs(codes.reshape(x.shape))
    return Rounded(
        {".weight_packed": packed, ".weight_scale": (exponent + 127).astype(np.uint8)},
        (E2M1[codes] * scale[..., None]).reshape(x.shape),
    )


def nvfp4(x: np.ndarray, *, power: bool) -> Rounded:
    whole = np.float32(np.abs(x).max() / (448 * 6))
    whole = np.float32(2.0 ** np.ceil(np.log2(whole))) if power else whole
    parts = groups(x, 16)
    scale, values = e4m3(np.abs(parts).max(-1) / 6 / whole)
    step = values * whole
    codes = nearest(parts / np.where(step == 0, 1, step)[..., None])
    return Rounded(
        {
            ".weight": pairs(codes.reshape(x.shape)),
            ".weight_scale": scale,
            ".weight_scale_2": np.array(whole, np.float32),
        },
        (E2M1[codes] * step[..., None]).reshape(x.shape),
    )


def bnb_int8(x: np.ndarray) -> Rounded:
    largest = np.abs(x).max(1).astype(np.float32)
    codes = np.clip(np.rint(x * (127 / largest[:, None])), -127, 127).astype(np.int8)
    parts = {".weight": codes, ".SCB": largest, ".weight_format": np.array(0, np.uint8)}
    return Rounded(parts, codes.astype(np.float32) * largest[:, None] * np.float32(7.874015718698502e-3))


NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803, 0.1609302,
     0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32,
)  # fmt: skip
"""The levels of NF4, rounded: bitsandbytes saves its own beside the weights."""


def nf4(x: np.ndarray) -> Rounded:
    flat = x.reshape(-1, 64)
    largest = np.abs(flat).max(1).astype(np.float32)
    codes = np.abs(flat[..., None] / largest[:, None, None] - NF4).argmin(-1).astype(np.uint8)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(x.shape)}).encode()
    joined = codes.reshape(-1)
    return Rounded(
        {".weight": (joined[::2] << 4 | joined[1::2]).reshape(-1, 1), ".weight.absmax": largest,
         ".weight.quant_map": NF4, ".weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8)},
        (NF4[codes] * largest[:, None]).reshape(x.shape),
    )  # fmt: skip


def trained_onto_grid(x: np.ndarray) -> Rounded:
    """Weights of a 4-bit grid that are saved as bfloat16 without a word: quantization-aware training."""
    codes, step = symmetric(x, 32, 7, "BF16")
    return Rounded({".weight": bf16(product(codes, step))}, half(product(codes, step), "BF16"))


PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}

KINDS: dict[str, Kind] = {
    "gptq-sym": Kind(lambda x: gptq(x, sym=True), {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}),
    "gptq-asym": Kind(lambda x: gptq(x, sym=False), {"quant_method": "gptq", "bits": 4, "group_size": 128}),
    "awq": Kind(awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}),
    "pack-int4-g32": Kind(lambda x: pack_quantized(x, bits=4, size=32), PACKED),
    "pack-int8-g128": Kind(
        lambda x: pack_quantized(x, bits=8, size=128),
        PACKED,
    ),
    "int8": Kind(int_quantized, {"quant_method": "compressed-tensors", "format": "int-quantized"}),
    "fp8-block": Kind(lambda x: fp8(x, power=False), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8-block-power": Kind(lambda x: fp8(x, power=True), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "mxfp4": Kind(mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}),
    "nvfp4": Kind(lambda x: nvfp4(x, power=False), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "nvfp4-power": Kind(lambda x: nvfp4(x, power=True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "bnb-nf4": Kind(nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bnb-int8": Kind(bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "qat": Kind(trained_onto_grid, {}),
}


def stack_as_gpt_oss(directory: Path) -> None:
    """Store the experts of a tiny gpt-oss of float32 in place as it is published: MXFP4, rows of outputs."""
    path, config = directory / "model.safetensors", directory / "config.json"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found: Parts = {}
    for name, entry in header.items():
        data = raw[8 + length :][slice(*entry["data_offsets"])]
        x = np.frombuffer(data, np.float32).reshape(entry["shape"])
        if not name.endswith(("gate_up_proj", "down_proj")):
            found[name] = bf16(x)
            continue
        rows = np.ascontiguousarray(np.swapaxes(x, -1, -2))
        parts = mxfp4(rows.reshape(-1, rows.shape[-1])).parts
        codes, scales = parts[".weight_packed"], parts[".weight_scale"]
        assert isinstance(codes, np.ndarray)
        assert isinstance(scales, np.ndarray)
        found[f"{name}_blocks"] = codes.reshape(*rows.shape[:2], rows.shape[2] // 32, 16)
        found[f"{name}_scales"] = scales.reshape(*rows.shape[:2], rows.shape[2] // 32)
    write(path, found)
    entry = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": entry}))
