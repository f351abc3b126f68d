"""Plans of MLX directories: the grouping of every layer, from a type's name or from a choice among options.

A plan names layers by their paths and groupings by names with the group size: `model.layers.0.mlp.up_proj: 4bit-g64`.
The scheme that config.json tells follows from it alone. Layers that it does not name stay floats.
"""

from collections.abc import Mapping, Sequence

from kvant.allocate.solver import solve
from kvant.errors import BudgetError, PlanError
from kvant.formats.huggingface.architectures.registry import family_of_model
from kvant.formats.huggingface.mlx.layers import WEIGHT, part_path
from kvant.formats.huggingface.mlx.schemes import MIXED, Scheme, grouping_name, is_type, named_grouping, scheme
from kvant.formats.huggingface.mlx.writer import SHARD_BYTES, layer_shapes, stored_bytes, stored_tensors
from kvant.kernels.mlx import Grouping
from kvant.model import Model
from kvant.quant.plan import Plan
from kvant.quant.roles import file_order
from kvant.recipes.targets.base import Options
from kvant.recipes.targets.mlx.fitted import SCALE_TYPE
from kvant.tensors import LazyTensor, n_bytes

TYPES = ("8bit", "6bit", "5bit", "4bit-g32", "4bit", "3bit-g32", "3bit")
"""What is considered by default, from fine to coarse."""

USUAL = "4bit"
"""What config.json gives for the whole model where a plan has no type's name, and for recipes."""


def type_plan(name: str, shapes: Mapping[str, Sequence[int]]) -> Plan:
    """Return the plan of a type or recipe.

    Args:
        name: `4bit`, `4bit-g32`, `mxfp4`, `mixed_3_6` ...
        shapes: Shape of the matrix of every layer that can be quantized, by the layer's path.

    Raises:
        UnsupportedFormatError: There is no such type, or its groups fit no layer.
    """
    layers = scheme(name, shapes).layers
    types = {path: grouping_name(grouping) for path, grouping in layers.items()}
    return Plan(preset=name.lower(), file_type=0, types=types)


def choice_plan(model: Model, choice: Mapping[str, str], preset: str) -> Plan:
    """Return the plan of a choice of groupings by canonical name."""
    paths = layer_paths(model, choice)
    return Plan(preset=preset, file_type=0, types={paths[name]: choice[name] for name in file_order(choice)})


def plan_choice(model: Model, plan: Plan, options: Options) -> dict[str, str] | None:
    """Return a plan's choice among options, by canonical name; None if it is none of them."""
    paths = layer_paths(model, options)
    if {paths[name] for name in options} != plan.types.keys():
        return None
    choice = {name: plan.types[paths[name]] for name in options}
    is_offered = all(any(o.kind == choice[name] for o in kinds) for name, kinds in options.items())
    return choice if is_offered else None


def layer_paths(model: Model, names: Mapping[str, object]) -> dict[str, str]:
    """Return the paths of layers by the canonical names of their matrices."""
    family = family_of_model(model)
    return {name: str(family.transformers_name(name)).removesuffix(WEIGHT) for name in names}


def plan_scheme(plan: Plan, plain: Sequence[LazyTensor]) -> Scheme:
    """Return the groupings of a plan.

    Args:
        plan: Grouping of every layer that is quantized.
        plain: The model's tensors under MLX's names.

    Raises:
        PlanError: The plan names a layer that the model lacks.
        UnsupportedFormatError: It names a grouping that MLX does not have.
    """
    unknown = sorted(plan.types.keys() - layer_shapes(plain).keys())
    if unknown:
        raise PlanError(
            f"plan: names {len(unknown)} layers ({unknown[0]}, ...) that the model lacks. Make a plan for this model."
        )
    layers = {path: named_grouping(kind) for path, kind in plan.types.items()}
    return Scheme(usual=usual_grouping(plan.preset), layers=layers, is_mixed=plan.preset in MIXED)


def usual_grouping(preset: str) -> Grouping:
    """Return what config.json gives for the whole model under a plan of this name."""
    return named_grouping(preset if is_type(preset) and preset not in MIXED else USUAL)


def rest_bytes(model: Model, plain: Sequence[LazyTensor], options: Options) -> int:
    """Bytes of the files of weights beside the layers that have options, at most.

    Every number in a header has the more digits the larger the groupings, so that the header of the largest choice is
    the longest; where weights are shared out over files, each may have a header of its own.
    """
    largest = {name: _largest([named_grouping(o.kind) for o in kinds]) for name, kinds in options.items()}
    paths = layer_paths(model, largest)
    layers = {paths[name]: grouping for name, grouping in largest.items()}
    tensors = stored_tensors(plain, Scheme(usual=named_grouping(USUAL), layers=layers), SCALE_TYPE)
    size = stored_bytes(tensors, max_file_bytes=1 << 62)
    of_options = sum(n_bytes(t) for t in tensors if part_path(t.name) in layers)
    # Two files that follow one another hold more than one shard together.
    further_files = 2 * (-(-size // SHARD_BYTES) - 1)
    return size - of_options + further_files * (stored_bytes([]) + 8)


def _largest(groupings: Sequence[Grouping]) -> Grouping:
    return Grouping(mode="affine", bits=max(g.bits for g in groupings), group_size=min(g.group_size for g in groupings))


def sized_choice(options: Options, max_bytes: int, rest: int) -> dict[str, str]:
    """Return the choice of least predicted KL divergence whose files of weights take at most so many bytes.

    Args:
        options: What every layer may become.
        max_bytes: Of all files of weights.
        rest: How many of them are not the options'.

    Raises:
        BudgetError: Not even the smallest groupings fit.
    """
    solution = solve(options, sum(max(option.n_bytes for option in kinds) for kinds in options.values()))
    if solution.least_bytes > max_bytes - rest:
        raise BudgetError(
            f"size: {max_bytes} bytes are below the {solution.least_bytes + rest} of 2 bits for every layer. "
            f"Allow at least that."
        )
    return {name: option.kind for name, option in solution.at(max_bytes - rest).items()}
