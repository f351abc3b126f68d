"""GPTQ and AWQ: codes of 2, 4 or 8 bits in 32-bit words, a scale and a whole zero point for each group of inputs.

    weight = (code - zero) * scale

    GPTQ   qweight [inputs * bits / 32, outputs]: a word holds consecutive inputs of one output
    AWQ    qweight [inputs, outputs * bits / 32]: a word holds outputs 0, 2, 4, 6, 1, 3, 5, 7 of one input (`gemm`)
    both   qzeros [groups, outputs * bits / 32], packed along outputs; scales [groups, outputs]

GPTQ's first form stores zero - 1, its second (`checkpoint_format: gptq_v2`) the zero itself. `g_idx` names the group of
each input; after `desc_act` inputs of a group are not neighbours, so that no block type has the groups.
Source: AutoGPTQ `nn_modules/qlinear`, GPTQModel `utils/model.py` (v1 and v2), AutoAWQ `utils/packing_utils.py`.
"""

from collections.abc import Iterator

import numpy as np

from kvant.formats.huggingface.quantized.base import (
    FLOATS,
    I32,
    Checkpoint,
    Layer,
    columns,
    unpacked,
)
from kvant.kernels import decode
from kvant.tensors import Tensor

QWEIGHT, QZEROS, SCALES, G_IDX = ".qweight", ".qzeros", ".scales", ".g_idx"
WIDTHS = (2, 4, 8)

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place in its word of each of eight outputs."""


def find(checkpoint: Checkpoint) -> Iterator[Layer]:
    """Yield the matrices of GPTQ and AWQ; their shapes say which it is.

    Raises:
        FormatError: The parts do not fit one another.
    """
    for path in checkpoint.ending(QWEIGHT):
        qweight, qzeros, scales = (checkpoint.part(path, part) for part in (QWEIGHT, QZEROS, SCALES))
        if qweight is None or qzeros is None or scales is None:
            continue
        if qweight.block_type != I32 or scales.block_type not in FLOATS or len(scales.shape) != 2:
            continue
        read = _gptq if qweight.shape[-1] == scales.shape[1] else _awq
        yield read(checkpoint, path + ".weight", qweight, qzeros, scales)


def _gptq(checkpoint: Checkpoint, name: str, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Layer:
    groups, outputs = scales.shape
    bits = _bits(checkpoint, name, qzeros, outputs)
    inputs = qweight.shape[0] * 32 // bits
    order = _groups(checkpoint, name, inputs, groups)
    checkpoint.check_said(name, qweight, bits=bits, groups=groups, n=inputs)
    in_order = bool((order == np.arange(inputs) * groups // inputs).all())
    is_first = str(checkpoint.settings.get("checkpoint_format", "gptq")) != "gptq_v2"
    per_word = 32 // bits

    def scale(start: int, stop: int) -> np.ndarray:
        return _floats(columns(scales, start, stop), scales).T

    def zero(start: int, stop: int) -> np.ndarray:
        first = start // per_word
        found = unpacked(columns(qzeros, first, -(-stop // per_word)), bits)
        return found[:, start - first * per_word : stop - first * per_word].T.astype(np.int16) + np.int16(is_first)

    def read(start: int, stop: int) -> np.ndarray:
        packed = np.ascontiguousarray(columns(qweight, start, stop).T)
        levels = unpacked(packed, bits).astype(np.int16) - zero(start, stop)[:, order]
        return np.asarray(levels.astype(np.float32) * scale(start, stop)[:, order])

    parts = [qweight.name, qzeros.name, scales.name]
    g_idx = checkpoint.part(name.removesuffix(".weight"), G_IDX)
    return Layer(
        name=name, kind=f"GPTQ int{bits}-g{inputs // groups}{'' if in_order else ' desc_act'}",
        shape=(outputs, inputs), parts=(*parts, *([g_idx.name] if g_idx else [])), rows=read,
        steps=scale if in_order else None,
        remark="" if in_order else "its inputs were ordered by activation (desc_act): groups are no runs of a row, so "
        "that no block type holds them",
    )  # fmt: skip


def _awq(checkpoint: Checkpoint, name: str, qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Layer:
    groups, outputs = scales.shape
    bits = _bits(checkpoint, name, qzeros, outputs)
    inputs = qweight.shape[0]
    if bits != 4 or qweight.shape[1] * 8 != outputs or not groups or inputs % groups:
        raise checkpoint.misfit(name, qweight, f"4-bit codes of {outputs} outputs as AWQ packs them (gemm)")
    checkpoint.check_said(name, qweight, bits=bits, groups=groups, n=inputs)

    def codes(tensor: Tensor, start: int, stop: int) -> np.ndarray:
        first = start // 8
        found = unpacked(columns(tensor, first, -(-stop // 8)), bits, AWQ_PLACES)
        return np.ascontiguousarray(found[:, start - 8 * first : stop - 8 * first].T).astype(np.int16)

    def scale(start: int, stop: int) -> np.ndarray:
        return _floats(columns(scales, start, stop), scales).T

    def read(start: int, stop: int) -> np.ndarray:
        run = inputs // groups
        levels = codes(qweight, start, stop) - codes(qzeros, start, stop).repeat(run, axis=1)
        return np.asarray(levels.astype(np.float32) * scale(start, stop).repeat(run, axis=1))

    return Layer(
        name=name, kind=f"AWQ int4-g{inputs // groups}", shape=(outputs, inputs),
        parts=(qweight.name, qzeros.name, scales.name), rows=read, steps=scale,
    )  # fmt: skip


def _bits(checkpoint: Checkpoint, name: str, qzeros: Tensor, outputs: int) -> int:
    groups = checkpoint.weights[name.removesuffix(".weight") + SCALES].shape[0]
    bits, rest = divmod(32 * qzeros.shape[-1], max(1, outputs))
    if rest or bits not in WIDTHS or qzeros.block_type != I32 or qzeros.shape[:-1] != (groups,):
        raise checkpoint.misfit(name, qzeros, f"zero points of 2, 4 or 8 bits for {outputs} outputs")
    return bits


def _groups(checkpoint: Checkpoint, name: str, inputs: int, groups: int) -> np.ndarray:
    """The group of each input, int64 [inputs]."""
    found = checkpoint.part(name.removesuffix(".weight"), G_IDX)
    if found is None:
        if groups == 0 or inputs % groups:
            raise checkpoint.misfit(name, checkpoint.weights[name.removesuffix(".weight") + SCALES], "whole groups")
        return np.arange(inputs) * groups // inputs
    if found.shape != (inputs,) or found.block_type != I32:
        raise checkpoint.misfit(name, found, f"a group for each of {inputs} inputs")
    order = np.ascontiguousarray(found.read_bytes(0, 1)).view("<i4").ravel().astype(np.int64)
    if order.min(initial=0) < 0 or order.max(initial=0) >= groups:
        raise checkpoint.misfit(name, found, f"numbers of {groups} groups")
    return order


def _floats(stored: np.ndarray, like: Tensor) -> np.ndarray:
    """Scales as stored, [rows, n], as float32."""
    return decode(stored.view(np.uint8), like.block_type, stored.shape[1], threads=1)
