"""Pictures, sounds and tiny projectors that see or hear, for tests, made with numpy alone."""

import struct
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np

from kvant.dtypes import F16, F32
from kvant.formats.gguf.writer import write_gguf
from kvant.metadata import Value, ValueType, array, boolean, f32, string, u32
from kvant.tensors import LazyTensor


def png(pixels: np.ndarray) -> bytes:
    """Return a PNG of pixels, uint8 [height, width, 3]."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows.tobytes())) + _chunk(b"IEND")
    )


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def disc(colour: tuple[int, int, int], width: int = 96, height: int = 64) -> bytes:
    """Return a PNG of a disc of a colour on white."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    y, x = np.mgrid[:height, :width]
    pixels[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2] = colour
    return png(pixels)


def wav(seconds: float = 0.5, rate: int = 16000, hertz: float = 440) -> bytes:
    """Return a WAV of a tone."""
    n = int(seconds * rate)
    samples = (np.sin(np.arange(n) * 2 * np.pi * hertz / rate) * 20000).astype("<i2").tobytes()
    head = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", len(samples))
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(samples)) + b"WAVE" + head + samples


def write_tiny_projector(
    path: Path, *, width: int = 256, hidden: int = 64, layers: int = 2, side: int = 64, seed: int = 0
) -> Path:
    """Write a random projector of SmolVLM's kind (idefics3) for a language model of a width.

    Args:
        path: The file.
        width: The language model's.
        hidden: The encoder's.
        layers: The encoder's blocks.
        side: Pixels of a side of the picture that it reads.
        seed: Of the weights.
    """
    patch, factor, tensor = 16, 2, _tensor(seed)
    tensors = [
        tensor("mm.model.fc.weight", width, hidden * factor**2),
        tensor("v.patch_embd.bias", hidden), tensor("v.patch_embd.weight", hidden, 3, patch, patch),
        tensor("v.position_embd.weight", (side // patch) ** 2, hidden),
    ]  # fmt: skip
    tensors += _blocks("v", hidden, layers, tensor)
    tensors += [tensor("v.post_ln.weight", hidden), tensor("v.post_ln.bias", hidden)]
    half = array(ValueType.FLOAT32, np.full(3, 0.5, np.float32))
    metadata: dict[str, Value] = {
        "general.architecture": string("clip"), "general.type": string("mmproj"), "general.name": string("Tiny eyes"),
        "general.file_type": u32(1), "clip.has_vision_encoder": boolean(True), "clip.vision.projection_dim": u32(width),
        "clip.vision.image_size": u32(side), "clip.vision.patch_size": u32(patch),
        "clip.vision.embedding_length": u32(hidden), "clip.vision.feed_forward_length": u32(2 * hidden),
        "clip.vision.block_count": u32(layers), "clip.vision.attention.head_count": u32(4),
        "clip.vision.image_mean": half, "clip.vision.image_std": half, "clip.projector_type": string("idefics3"),
        "clip.vision.attention.layer_norm_epsilon": f32(1e-6), "clip.vision.projector.scale_factor": u32(factor),
        "clip.use_gelu": boolean(True), "clip.vision.preproc_image_size": u32(2 * side),
        "general.quantization_version": u32(2),
    }  # fmt: skip
    write_gguf(path, metadata, tensors)
    return path


def write_tiny_ears(
    path: Path, *, width: int = 256, hidden: int = 64, layers: int = 1, mels: int = 80, seed: int = 0
) -> Path:
    """Write a random projector of Qwen2-Audio's kind (qwen2a), which hears 30 s as 750 tokens.

    Args:
        path: The file.
        width: The language model's.
        hidden: The encoder's.
        layers: The encoder's blocks.
        mels: Bands of the spectrum that it reads.
        seed: Of the weights.
    """
    tensor = _tensor(seed)
    tensors = [
        tensor("a.conv1d.1.weight", hidden, mels, 3), tensor("a.conv1d.1.bias", hidden, 1),
        tensor("a.conv1d.2.weight", hidden, hidden, 3), tensor("a.conv1d.2.bias", hidden, 1),
        tensor("a.position_embd.weight", 1500, hidden),
        *_blocks("a", hidden, layers, tensor), tensor("a.post_ln.weight", hidden), tensor("a.post_ln.bias", hidden),
        tensor("mm.a.fc.weight", width, hidden), tensor("mm.a.fc.bias", width),
    ]  # fmt: skip
    metadata: dict[str, Value] = {
        "general.architecture": string("clip"), "general.type": string("mmproj"), "general.name": string("Tiny ears"),
        "general.file_type": u32(1), "clip.has_audio_encoder": boolean(True), "clip.audio.projection_dim": u32(width),
        "clip.audio.embedding_length": u32(hidden), "clip.audio.feed_forward_length": u32(2 * hidden),
        "clip.audio.block_count": u32(layers), "clip.audio.attention.head_count": u32(4),
        "clip.projector_type": string("qwen2a"), "clip.audio.num_mel_bins": u32(mels),
        "clip.audio.attention.layer_norm_epsilon": f32(1e-5), "general.quantization_version": u32(2),
    }  # fmt: skip
    write_gguf(path, metadata, tensors)
    return path


class _Tensor(Protocol):
    """Makes a random tensor of a name and a shape."""

    def __call__(self, name: str, *shape: int) -> LazyTensor: ...


def _tensor(seed: int) -> _Tensor:
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> LazyTensor:
        values = rng.standard_normal(shape) * (0.8 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1)
        if name.endswith(("ln1.weight", "ln2.weight", "post_ln.weight")):
            values += 1
        is_half = name.endswith(".weight") and (len(shape) == 2 or "conv1d" in name) and "position" not in name
        kind = F16 if is_half else F32
        data = values.astype(np.float16 if kind is F16 else np.float32)
        rows = data.reshape(-1, shape[-1]).view(np.uint8)
        return LazyTensor(name=name, shape=shape, block_type=kind, read=lambda start, stop: rows[start:stop])

    return tensor


def _blocks(sense: str, hidden: int, layers: int, tensor: _Tensor) -> list[LazyTensor]:
    sizes = {"ffn_up": (2 * hidden, hidden), "ffn_down": (hidden, 2 * hidden)}
    sizes |= {f"attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "out")}
    tensors = []
    for layer in range(layers):
        for norm in ("ln1", "ln2"):
            tensors += [tensor(f"{sense}.blk.{layer}.{norm}.{part}", hidden) for part in ("weight", "bias")]
        for name, shape in sizes.items():
            tensors.append(tensor(f"{sense}.blk.{layer}.{name}.weight", *shape))
            if (sense, name) != ("a", "attn_k"):  # Whisper's keys have none
                tensors.append(tensor(f"{sense}.blk.{layer}.{name}.bias", shape[0]))
    return tensors
