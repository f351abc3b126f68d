"""What ONNX Runtime's execution providers run: types and bits, by provider. One table.

A provider that does not run an operator leaves it to the processor, which costs a copy each way, or refuses the model.

Source: onnxruntime 1.32, docs/ContribOperators.md, docs/OperatorKernels.md and the providers' own pages
(onnxruntime.ai/docs/execution-providers); issues 28895 (WebGPU, look-ups in 2 bits) and pull request 32657 (CUDA, 2
bits). Only the CPU's row was run here; the others are what these say.
"""

from dataclasses import dataclass

from kvant.errors import UnsupportedFormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What a provider runs.

    Attributes:
        name: As people write it.
        matmul_bits: Bits of MatMulNBits.
        gather_bits: Bits of GatherBlockQuantized.
        blocks: Sizes of their blocks.
        asymmetric: Blocks may have zero points.
        dynamic_int8: Runs MatMulInteger and its like.
        static_int8: Fuses QuantizeLinear and DequantizeLinear into int8 operators.
        activation: Type of activations that static int8 must have; None for either.
        per_channel: Weights may have a scale per channel.
    """

    name: str
    matmul_bits: frozenset[int]
    gather_bits: frozenset[int]
    blocks: frozenset[int]
    asymmetric: bool
    dynamic_int8: bool
    static_int8: bool
    activation: str | None = None
    per_channel: bool = True


_ALL_BLOCKS = frozenset({16, 32, 64, 128, 256})


def _table() -> dict[str, Provider]:
    none: frozenset[int] = frozenset()
    rows = [
        # name, MatMulNBits, GatherBlockQuantized, blocks, zero points, dynamic, static, activations, per channel
        ("CPU", {2, 4, 8}, {2, 4, 8}, _ALL_BLOCKS, True, True, True, None, True),
        ("CUDA", {4, 8}, {4, 8}, {16, 32, 64, 128}, True, False, False, None, True),
        ("DirectML", {4}, {4}, {16, 32, 64, 128, 256}, True, True, True, None, True),
        ("WebGPU", {2, 4, 8}, {4, 8}, {32}, True, False, False, None, True),
        ("OpenVINO", {4}, none, _ALL_BLOCKS, True, False, True, None, True),
        ("QNN", none, none, none, False, False, True, "uint8", True),
        ("CoreML", none, none, none, False, False, False, None, True),
    ]  # fmt: skip
    return {
        name.lower(): Provider(
            name=name, matmul_bits=frozenset(matmul), gather_bits=frozenset(gather), blocks=frozenset(blocks),
            asymmetric=zeros, dynamic_int8=dynamic, static_int8=static, activation=activation, per_channel=channels,
        )
        for name, matmul, gather, blocks, zeros, dynamic, static, activation, channels in rows
    }  # fmt: skip


PROVIDERS = _table()


def provider(name: str) -> Provider:
    """Return a provider by its name in any case, with or without `ExecutionProvider`.

    Raises:
        UnsupportedFormatError: It is not in the table.
    """
    found = PROVIDERS.get(name.lower().removesuffix("executionprovider").replace("dml", "directml"))
    if found is None:
        names = ", ".join(p.name for p in PROVIDERS.values())
        raise UnsupportedFormatError(f"target: {name!r} is no execution provider known here. Use one of {names}.")
    return found
