"""Write a model for MLX: unquantized, with the bytes that `mlx_lm.convert` gives, or encoded under Hessians."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kvant.errors import PlanError, UnsupportedFormatError
from kvant.files import check_apart
from kvant.formats.huggingface.config import read_config
from kvant.formats.huggingface.directory import check_directory
from kvant.formats.huggingface.mlx.schemes import grouping_name
from kvant.formats.huggingface.mlx.writer import layer_shapes, mlx_tensors, write_mlx
from kvant.formats.huggingface.writer import TORCH_DTYPES
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Importance
from kvant.quant.matching import importance_remarks
from kvant.quant.plan import Plan
from kvant.recipes.measure.calibration import WINDOWS, Calibration
from kvant.recipes.measure.calibration import calibrate as calibration_of
from kvant.recipes.targets.mlx.encoding import Encoding, by_importance, can_be_fitted, under_hessians
from kvant.recipes.targets.mlx.fitted import SCALE_TYPE, FittedLayers, grouping_options
from kvant.recipes.targets.mlx.plan import (
    choice_plan,
    plan_scheme,
    rest_bytes,
    sized_choice,
    type_plan,
    usual_grouping,
)
from kvant.tensors import LazyTensor

FALLBACK_DTYPE = "F16"

_BY_TORCH_NAME = {theirs: ours for ours, theirs in TORCH_DTYPES.items()}


class MLXResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        path: The directory.
        files: Files of weights.
        type: Type or recipe of the matrices; the float type if they are not quantized.
        dtype: Float type of everything else.
        size_bytes: Bytes of the files of weights.
        source_bytes: Bytes of the source's tensors.
        bpw: Bits per weight over all tensors.
        types: Layers of each grouping.
        kept: Layers whose rows no group divides; they stay in the float type.
        remarks: What was left out or taken otherwise than it looks.
        wall_s: Seconds it took.
    """

    path: str
    files: tuple[str, ...]
    type: str
    dtype: str
    size_bytes: int
    source_bytes: int
    bpw: float
    types: dict[str, int]
    kept: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    wall_s: float


def to_mlx(
    source: Model | Path | str,
    out: Path | str,
    *,
    type: str | None = None,  # noqa: A002 - the word people use on the command line
    dtype: str | None = None,
    calibrate: str | Calibration | None = None,
    calibrate_windows: int = WINDOWS,
    importance: Importance | None = None,
    max_size_bytes: int | None = None,
    overwrite: bool = False,
    allow_requantize: bool = False,
    max_file_bytes: int | None = None,
    progress: Progress = SILENT,
    threads: int = 1,
) -> MLXResult:
    """Write an MLX directory.

    Args:
        source: A Hugging Face directory or a GGUF file.
        out: The directory.
        type: `4bit`, `4bit-g32`, `mxfp4`, `mixed_3_6` ...; None leaves the matrices as floats.
        dtype: Float type: F16, BF16 or F32; by default the source's, and F16 with calibration.
        calibrate: Text to measure Hessians on: `bundled`, `self` or a file, or what was measured already; affine layers
            are encoded under them.
        calibrate_windows: Most windows of 512 tokens of it.
        importance: Instead of calibration: errors are weighed by the importance of their channels.
        max_size_bytes: With calibration: give every layer the grouping that is best within this size of all files of
            weights, instead of the type's.
        overwrite: Replace an output that exists.
        allow_requantize: Accept a source whose tensors are quantized already, at a loss.
        max_file_bytes: Write shards of at most this size.
        progress: Told of the bytes written.
        threads: Threads over rows.

    Raises:
        UnsupportedFormatError: There is no such type, or it cannot be had with calibration.
        PlanError: The source is quantized, a size is given without calibration, or the importance is another model's.
        BudgetError: No groupings are that small.
        UnsupportedModelError: The architecture is not supported.
        OutputExistsError: The output exists.
    """
    started = time.monotonic()
    model = _source(source, Path(out), overwrite=overwrite)
    if max_size_bytes is not None and calibrate is None:
        raise PlanError("size: a limit needs to know what each layer can bear. Add --calibrate bundled.")
    is_fitted = type is not None and bool(calibrate or importance)
    if is_fitted and (dtype or SCALE_TYPE).upper() != SCALE_TYPE:
        raise UnsupportedFormatError(f"dtype: {dtype} cannot be had with calibration yet. Use {SCALE_TYPE}.")
    dtype = float_type(model, SCALE_TYPE if is_fitted else dtype)
    if type is not None and not allow_requantize:
        check_is_full(model)
    plain = mlx_tensors(model, dtype)
    plan = None if type is None else _checked_plan(type, plain, is_fitted=is_fitted)
    encoding = Encoding(dtype=dtype)
    if calibrate and plan is not None:
        calibration = calibrate if isinstance(calibrate, Calibration) else calibration_of(
            model, calibrate, windows=calibrate_windows, threads=threads, progress=progress
        )  # fmt: skip
        if max_size_bytes is not None:
            options = grouping_options(model, calibration, threads=threads, progress=progress)
            choice = sized_choice(options, max_size_bytes, rest_bytes(model, plain, options))
            plan = choice_plan(model, choice, grouping_name(usual_grouping(plan.preset)))
        encoding = under_hessians(calibration)
    elif importance and plan is not None:
        encoding = by_importance(importance, model)
    files = write_plan(
        model, plan, Path(out), encoding, overwrite=overwrite, max_file_bytes=max_file_bytes, threads=threads,
        progress=progress,
    )  # fmt: skip
    size = sum(file.stat().st_size for file in files)
    return MLXResult(
        path=str(out), files=tuple(map(str, files)), type=type or dtype, dtype=dtype, size_bytes=size,
        source_bytes=model.tensor_bytes, bpw=8 * size / model.n_weights, types=counts(plan),
        kept=tuple(path for path in layer_shapes(plain) if plan and path not in plan.types),
        remarks=importance_remarks(model, importance), wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def write_plan(
    model: Model, plan: Plan | None, out: Path, encoding: Encoding, *, overwrite: bool = False,
    max_file_bytes: int | None = None, threads: int = 1, progress: Progress = SILENT,
) -> tuple[Path, ...]:  # fmt: skip
    """Write the directory of a plan; the same bytes for the same plan and encoding, whatever the threads.

    Args:
        model: The full-precision model.
        plan: Grouping of every layer; None leaves all as floats.
        out: The directory.
        encoding: How layers are encoded.
        overwrite: Replace a model that is there.
        max_file_bytes: Write shards of at most this size.
        threads: Threads over rows.
        progress: Told of the bytes written.

    Returns:
        The files of weights.

    Raises:
        PlanError: The plan is another model's.
        OutputExistsError: There is a model.
    """
    chosen = plan_scheme(plan, mlx_tensors(model, encoding.dtype)) if plan else None
    known = encoding.curvatures
    return write_mlx(
        model, out, dtype=encoding.dtype, scheme=chosen,
        encoder=FittedLayers(model, known, threads=threads) if known else None, provenance=encoding.provenance,
        overwrite=overwrite, max_file_bytes=max_file_bytes, progress=progress, threads=threads,
    )  # fmt: skip


def _source(source: Model | Path | str, out: Path, *, overwrite: bool) -> Model:
    """Return the model to write, once it is known that it may be written there.

    Raises:
        OutputExistsError: There is another model, or the model itself.
    """
    model = source if isinstance(source, Model) else open_model(source)
    check_apart(out, (model.path, *model.files))
    check_directory(out, overwrite=overwrite)
    return model


def _checked_plan(type_: str, plain: Sequence[LazyTensor], *, is_fitted: bool) -> Plan:
    """Return the plan of a type; refuse one that what was measured could not be used for.

    Raises:
        UnsupportedFormatError: There is no such type, or none of its groupings is encoded by what matters.
    """
    plan = type_plan(type_, layer_shapes(plain))
    if is_fitted and not can_be_fitted(plan):
        raise UnsupportedFormatError(
            f"type {type_}: no layer of it is encoded by importance or Hessians, so --calibrate or --imatrix "
            f"would not be used. Leave them out, or use a type such as 4bit or 4bit-g32."
        )
    return plan


def check_is_full(model: Model) -> None:
    """Refuse to quantize twice.

    Raises:
        PlanError: A tensor is quantized.
    """
    if model.quantized_types:
        raise PlanError(
            f"{model.path}: is {', '.join(model.quantized_types)} already, and quantizing twice loses more. Start from "
            "the full-precision model, or accept it with --allow-requantize."
        )


def float_type(model: Model, wanted: str | None) -> str:
    """Return the float type to write: the one asked for, or the source's own.

    Raises:
        UnsupportedFormatError: It is none of MLX's.
    """
    if wanted is not None:
        if wanted.upper() not in TORCH_DTYPES:
            raise UnsupportedFormatError(
                f"dtype: {wanted!r} is none that MLX takes. Use one of {', '.join(TORCH_DTYPES)}."
            )
        return wanted.upper()
    if model.path.is_dir():
        raw = read_config(model.path)
        return _BY_TORCH_NAME.get(str(raw.get("torch_dtype", raw.get("dtype"))), FALLBACK_DTYPE)
    kinds = {t.block_type.name for t in model.tensors.values() if len(t.shape) > 1}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"F16", "BF16"} else FALLBACK_DTYPE


def counts(plan: Plan | None) -> dict[str, int]:
    """Return how many layers have each grouping."""
    return dict(sorted(Counter(plan.types.values() if plan else ()).items()))
