"""The plan: which block type every tensor of a model gets. A small JSON document, made by a preset or by hand."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kvant.documents import JSON_ERRORS, check_version, read_document
from kvant.dtypes import BLOCK_TYPES, F16, F32, Family, block_type
from kvant.errors import FormatError, PlanError, UnsupportedFormatError
from kvant.files import atomic_write
from kvant.model import Model
from kvant.quant.roles import EMBEDDINGS, OUTPUT, file_order
from kvant.tensors import n_weights, row_length

MAX_PLAN_BYTES = 64 << 20
PLAN_FORM = 1
"""The field `plan` of a plan file."""
CUSTOM = "custom"
KEEP = "keep"
"""Preset of what lies on a grid already: every tensor in the type that holds it, none rounded again."""

WEIGHT_TYPES = tuple(name for name, kind in BLOCK_TYPES.items() if kind.family is not Family.INTEGER and name != "F64")
"""Types that weights are encoded as; the others are only carried over."""

# Types whose encoders have no search without importance, and those that lose the model without it.
# Source: ggml 0.26 `ggml_quantize_requires_imatrix`, llama.cpp b11434 `tensor_requires_imatrix`.
IMPOSSIBLE_WITHOUT_IMPORTANCE = frozenset({"IQ1_S", "IQ2_XXS", "IQ2_XS"})
POOR_WITHOUT_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})


class Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that gets another type than its preset asks for, because its rows do not divide into blocks.

    Attributes:
        tensor: Its name.
        row_length: Weights per row.
        wanted: Type that the preset asks for.
        got: Type that it gets.
        extra_bytes: Bytes more than at the bpw of the wanted type; negative if fewer.
    """

    tensor: str
    row_length: int
    wanted: str
    got: str
    extra_bytes: int

    def __str__(self) -> str:
        length = block_type(self.wanted).block_length
        return (
            f"{self.tensor}: row length {self.row_length} is not a multiple of the {self.wanted} block size {length}, "
            f"{self.got} instead ({self.extra_bytes:+,} bytes)"
        )


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Block type of every tensor of a model.

    Attributes:
        preset: Preset it was made from, or `custom`.
        file_type: llama.cpp's number for `general.file_type`.
        types: Type by tensor name, in the order in which tensors are written.
        fallbacks: Tensors that do not get what the preset asks for.
        has_importance: Whether the rules assumed that importance is at hand.
        pure: Whether the preset's mix was switched off.
        predicted_bytes: Size of the file to the byte, if it was computed.
    """

    preset: str
    file_type: int
    types: dict[str, str]
    fallbacks: tuple[Fallback, ...] = ()
    has_importance: bool = False
    pure: bool = False
    predicted_bytes: int | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 of what decides the tensors' bytes: preset, file type and types, whatever order they are in."""
        facts = [self.preset, self.file_type, sorted(self.types.items())]
        return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()

    def counts(self) -> dict[str, int]:
        """Number of tensors of each type, in the order of the table of block types."""
        names = list(self.types.values())
        return {name: names.count(name) for name in BLOCK_TYPES if name in names}

    def bpw(self, model: Model) -> float:
        """Bits per weight over all tensors."""
        bits = sum(block_type(self.types[t.name]).bpw * n_weights(t) for t in model.tensors.values())
        return bits / model.n_weights if model.n_weights else 0.0


def needs_importance(plan: Plan, model: Model) -> list[str]:
    """Return the tensors that the plan would ruin without importance, in file order.

    Embeddings and the output head may take a poor type without importance, as upstream allows; never an impossible one.
    """
    needed = []
    for name in file_order(plan.types):
        target = plan.types[name]
        if name not in model.tensors or model.tensors[name].block_type.name == target:
            continue
        exempt = name in EMBEDDINGS or name == OUTPUT
        poor = target in POOR_WITHOUT_IMPORTANCE or (target == "Q2_K" and plan.preset == "Q2_K_S")
        if target in IMPOSSIBLE_WITHOUT_IMPORTANCE or (poor and not exempt):
            needed.append(name)
    return needed


def check_plan(plan: Plan, model: Model) -> None:
    """Check that a plan names exactly the tensors of a model, with types that their rows can hold.

    Raises:
        PlanError: It does not.
    """
    missing = [name for name in model.tensors if name not in plan.types]
    unknown = [name for name in plan.types if name not in model.tensors]
    if missing or unknown:
        which, names = ("has no type for", missing) if missing else ("names unknown", unknown)
        raise PlanError(
            f"plan: {which} {len(names)} tensors ({names[0]}, ...) of {model.name}. Make a plan for this model."
        )
    for name, type_name in plan.types.items():
        if type_name not in BLOCK_TYPES:
            raise PlanError(f"plan: {name}: {type_name!r} is no block type. Use one of {', '.join(BLOCK_TYPES)}.")
        tensor, target = model.tensors[name], block_type(type_name)
        if target != tensor.block_type and type_name not in WEIGHT_TYPES:
            raise PlanError(f"plan: {name}: nothing is encoded as {type_name}. Use one of {', '.join(WEIGHT_TYPES)}.")
        if row_length(tensor) % target.block_length:
            raise PlanError(
                f"plan: {name}: row length {row_length(tensor)} is not a multiple of the {target} block size "
                f"{target.block_length}. Use {fitting_type(target.name, row_length(tensor))}."
            )


def weight_type(name: str) -> str:
    """Return the name of a type that weights are encoded as, from its name in any case.

    Raises:
        UnsupportedFormatError: There is none of that name.
    """
    found = next((known for known in WEIGHT_TYPES if known == name.upper()), None)
    if found is None:
        raise UnsupportedFormatError(
            f"type: {name!r} is none that weights are encoded as. Use one of {', '.join(WEIGHT_TYPES)}."
        )
    return found


# Type that takes over where a row does not divide into blocks of 256 or 64.
# Source: llama.cpp b11434 `tensor_type_fallback`.
_SMALLER_BLOCK: Mapping[str, str] = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}  # fmt: skip


def fitting_type(wanted: str, n: int) -> str:
    """Return the type that a row of `n` weights gets when `wanted` is asked for: it, its substitute, or F16.

    Raises:
        PlanError: The row does not fit and there is no substitute for this type.
    """
    if n % block_type(wanted).block_length == 0:
        return wanted
    if block_type(wanted).block_length > 32 and wanted not in _SMALLER_BLOCK:
        raise PlanError(
            f"{wanted}: row length {n} is not a multiple of its block size {block_type(wanted).block_length} and "
            f"nothing stands in for it. Choose another type for this tensor with --type."
        )
    substitute = _SMALLER_BLOCK.get(wanted, wanted)
    return substitute if n % block_type(substitute).block_length == 0 else F16.name


def encode_plan(plan: Plan) -> bytes:
    """Return a plan as indented JSON with a final line feed."""
    document = {"plan": PLAN_FORM, **msgspec.to_builtins(plan)}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write_plan(plan: Plan, path: Path, *, overwrite: bool = False) -> None:
    """Write a plan file.

    Raises:
        OutputExistsError: The file exists and `overwrite` is false.
    """
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(encode_plan(plan))


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        KvantError: It cannot be read.
        FormatError: It is not a plan, or one of a newer form.
    """
    data = read_document(path, "plan", MAX_PLAN_BYTES)
    try:
        document = msgspec.json.decode(data)
        if isinstance(document, dict):
            check_version(document, "plan", PLAN_FORM, subject=path)
            document.pop("plan", None)
        return msgspec.convert(document, Plan)
    except JSON_ERRORS as error:
        raise FormatError(f"{path}: {error} breaks the plan format. Write one with --write-plan.") from error


def stored_type(name: str, shape: tuple[int, ...], source: str) -> str:
    """Return the type of a tensor that is not quantized: as it is, but half-precision vectors and norms become F32.

    Engines compute with norms and biases in F32; GGUF files hold them so already, other sources may not.
    """
    is_vector = not any(length > 1 for length in shape[:-1]) or name.endswith("_norm.weight")
    return F32.name if is_vector and source in ("F16", "BF16", "F64") else source
