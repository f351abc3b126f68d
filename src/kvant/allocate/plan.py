"""From a choice to the plan that quantizing carries out."""

from collections.abc import Callable, Mapping

import msgspec

from kvant.dtypes import BLOCK_TYPES
from kvant.errors import PlanError
from kvant.model import Model
from kvant.quant.plan import CUSTOM, Plan, check_plan, stored_type
from kvant.quant.presets import ALIASES, PRESETS
from kvant.quant.roles import file_order


def plan_choice(
    model: Model,
    types: Mapping[str, str],
    *,
    preset: str = CUSTOM,
    has_importance: bool = True,
    size: Callable[[Plan], int] | None = None,
) -> Plan:
    """Return the plan of a choice; tensors that it does not name stay as they are.

    Args:
        model: The full-precision model.
        types: Block type by tensor name.
        preset: Name that the plan goes by.
        has_importance: Whether statistics are at hand to encode with.
        size: Returns the exact size of a plan's file; None leaves it open.

    Raises:
        PlanError: The choice names a tensor that the model lacks, or a type that its rows cannot hold.
    """
    unknown = [name for name in types if name not in model.tensors]
    if unknown:
        raise PlanError(f"{unknown[0]}: {model.name} has no such tensor. Allocate for this model.")
    kinds = {}
    for name in file_order(model.tensors):
        tensor = model.tensors[name]
        kinds[name] = types.get(name) or stored_type(name, tensor.shape, tensor.block_type.name)
    number = file_type(types)
    plan = Plan(preset=preset, file_type=number, types=kinds, has_importance=has_importance)
    check_plan(plan, model)
    return msgspec.structs.replace(plan, predicted_bytes=size(plan)) if size else plan


def file_type(types: Mapping[str, str]) -> int:
    """Return llama.cpp's number for a mix: that of the preset whose own type most of the tensors have.

    Of equally common types the first in the table of block types counts; of presets with the same own type the one
    that bears its name or for which that is short, then the first. F16 (1) if no preset has it.
    """
    kinds = list(types.values())
    common = max(BLOCK_TYPES, key=kinds.count) if kinds else "F16"
    named = PRESETS.get(ALIASES.get(common, common))
    if named is not None and named.base == common:
        return named.file_type
    return next((preset.file_type for preset in PRESETS.values() if preset.base == common), PRESETS["F16"].file_type)
