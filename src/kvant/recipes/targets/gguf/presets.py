"""Candidate variants of a model: every sensible preset, its exact size, and what it is expected to need and lose."""

import dataclasses
from collections.abc import Sequence

from kvant.devices.cache import BATCH_TOKENS
from kvant.devices.memory import predict_ram, repacked_bytes
from kvant.devices.profiles import Profile
from kvant.devices.speed import bytes_per_token, predict_speed
from kvant.dtypes import block_type
from kvant.errors import PlanError
from kvant.formats.gguf.kinds import makes_vectors
from kvant.formats.gguf.layout import TensorInfo, checked_alignment, file_layout, padded
from kvant.formats.gguf.spec import KEY_ALIGNMENT
from kvant.metadata import ValueType, u32
from kvant.model import Model
from kvant.quant.grids import may_keep
from kvant.quant.importance import Importance
from kvant.quant.plan import KEEP, Plan, needs_importance
from kvant.quant.presets import find_preset, plan_preset
from kvant.recipes.companion import Companion
from kvant.recipes.measure.distortion import plan_distortion
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf.write import output_metadata

# From fine to coarse. Left out: ternary and binary types, which need models trained for them, and MXFP4, which is a
# mix for expert layers.
DEFAULT_PRESETS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "IQ4_NL", "Q4_0", "IQ4_XS",
    "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
    "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip


# Magic, version and the two counts.
FIXED_HEADER_BYTES = 24


def make_candidates(
    model: Model,
    profile: Profile,
    *,
    context: int,
    presets: Sequence[str] = (),
    importance: Importance | None = None,
    beside: Companion | None = None,
) -> list[Candidate]:
    """Plan every preset and predict size, memory and speed; nothing is encoded.

    A model that lies on a grid is offered as it is, too: the preset `keep`, which rounds nothing.

    Args:
        model: The full-precision model.
        profile: The device it will run on.
        context: Tokens of context that memory is predicted for.
        presets: Presets to consider; by default every sensible one that the importance at hand allows.
        importance: Importance that variants would be encoded with.
        beside: The projector that goes with each.

    Returns:
        Candidates by rising size; presets that come to the same types are one.

    Raises:
        PlanError: A preset that was asked for is unknown or needs importance.
    """
    lies_on_grid = not presets and model.is_base and (bool(model.quantized_types) or may_keep(model))
    kept = (KEEP,) if lies_on_grid else ()
    asked = presets or (*kept, full_precision(model), *DEFAULT_PRESETS)
    plans: dict[tuple[bool, tuple[tuple[str, str], ...]], list[Plan]] = {}
    for name in asked:
        known = KEEP if name.lower() == KEEP else find_preset(name).name
        plan = plan_preset(model, known, has_importance=importance is not None)
        if importance is None and needs_importance(plan, model):
            if presets:
                raise PlanError(
                    f"{plan.preset}: needs importance to be worth making. Pass --imatrix FILE, or leave it out."
                )
            continue
        plans.setdefault((known == KEEP, tuple(sorted(plan.types.items()))), []).append(plan)
    sizes = exact_sizes(model, [same[0] for same in plans.values()], importance)
    found = [
        make_candidate(model, same, size, profile, context, beside)
        for same, size in zip(plans.values(), sizes, strict=True)
    ]
    return sorted(found, key=lambda c: (c.size_bytes, c.distortion))


def full_precision(model: Model) -> str:
    """The preset that leaves a model's weights as they are: the type of most of them, F16 if that is F32."""
    totals: dict[str, int] = {}
    for tensor in model.tensors.values():
        if len(tensor.shape) > 1:
            totals[tensor.block_type.name] = totals.get(tensor.block_type.name, 0) + tensor.shape[0] * tensor.shape[-1]
    main = max(totals, key=lambda name: totals[name], default="F16")
    return "BF16" if main == "BF16" else "F16"


def exact_sizes(model: Model, plans: Sequence[Plan], importance: Importance | None = None) -> list[int]:
    """Return the exact size in bytes of the file of every plan, as `predict_size` does for one.

    The vocabulary is the same in all of them and large, so it is laid out once.
    """
    lists = {k: v for k, v in model.metadata.items() if v.type is ValueType.ARRAY and k != KEY_ALIGNMENT}
    rest = {k: v for k, v in model.metadata.items() if k not in lists}
    lean = dataclasses.replace(model, metadata=rest)
    alignment = checked_alignment(model.metadata)
    # Laid out with an alignment of 1 a header has no padding, so that lengths add up.
    unpadded = {KEY_ALIGNMENT: u32(1)}
    key_bytes = 0 if KEY_ALIGNMENT in rest else len(file_layout(unpadded, ()).header) - FIXED_HEADER_BYTES
    list_bytes = len(file_layout({**lists, **unpadded}, ()).header) - len(file_layout(unpadded, ()).header)
    sizes = []
    for plan in plans:
        infos = [TensorInfo(t.name, t.shape, block_type(plan.types[t.name])) for t in model.tensors.values()]
        header = len(file_layout({**output_metadata(lean, plan, importance), **unpadded}, infos).header)
        tensors = sum(padded(info.n_bytes, alignment) for info in infos)
        sizes.append(padded(header - key_bytes + list_bytes, alignment) + tensors)
    return sizes


def make_candidate(
    model: Model, same: Sequence[Plan], size: int, profile: Profile, context: int, beside: Companion | None = None
) -> Candidate:
    """Predict what the first of some plans, which come to the same types, needs and loses."""
    plan = same[0]
    types = {name: block_type(kind) for name, kind in plan.types.items()}
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    speed = predict_speed(
        bytes_per_token(types, shapes, model),
        bandwidth_bytes_s=profile.bandwidth_bytes_s,
        cores=profile.cores,
        core_scale=profile.core_scale,
    )
    return Candidate(
        preset=plan.preset,
        name=plan.preset,
        plan=plan,
        aliases=tuple(other.preset for other in same[1:]),
        size_bytes=size,
        bpw=plan.bpw(model),
        ram=predict_ram(
            model,
            size,
            context,
            repacked=repacked_bytes(types, shapes, profile.architecture),
            batch=context if makes_vectors(model) else BATCH_TOKENS,
            projector=beside.memory_bytes if beside else 0,
        ),
        beside_bytes=beside.size_bytes if beside else 0,
        speed_tok_s=speed,
        distortion=plan_distortion(plan, model),
    )
