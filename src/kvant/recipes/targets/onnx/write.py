"""Quantize a decoder's matrices into MatMulNBits and GatherBlockQuantized, as a directory of onnxruntime-genai.

source ── open_export() ── float32 graph ── plan ── each matrix encoded ── OUT/model.onnx, model.onnx.data
calibration ── Hessians ─────────────────────┴──────────┘                   OUT/genai_config.json, tokenizer
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from kvant.allocate.options import total_cost
from kvant.allocate.search import types_of
from kvant.devices.providers import provider
from kvant.errors import KvantError, OutputExistsError, UnsupportedFormatError
from kvant.files import partial_path
from kvant.formats.onnx.decoder import CONFIG, Decoder, read_decoder
from kvant.formats.onnx.weights import tensor_names
from kvant.formats.onnx.writer import write_graph
from kvant.formats.open import open_model
from kvant.kernels.nbits import nbits_type
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Importance
from kvant.quant.matching import importance_remarks
from kvant.quant.plan import Plan
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.output import put_directory
from kvant.recipes.targets.onnx.browser import rearrange
from kvant.recipes.targets.onnx.encoding import Encoder, Known, can_fit, known_of
from kvant.recipes.targets.onnx.options import choices_of
from kvant.recipes.targets.onnx.origin import GRAPH, Origin, open_export
from kvant.recipes.targets.onnx.plan import Dtype, counts, fitting_plan, named_plan

Layout = Literal["genai", "transformers.js"]


class DecoderResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        path: The directory.
        files: The files that hold the model's graph and weights.
        type: What was asked for.
        types: Matrices of each type of blocks.
        n_fitted: Matrices encoded under a Hessian.
        size_bytes: Bytes of `files`.
        bpw: Bits per weight over all tensors.
        predicted_kld: KL divergence that the plan was predicted to add; None if it was not.
        rewritten: Matrices that got other blocks than asked for because of the target, and why.
        remarks: What was left out or taken otherwise than it looks.
        wall_s: Seconds it took, the export aside.
    """

    path: str
    files: tuple[str, ...]
    type: str
    types: dict[str, int]
    n_fitted: int
    size_bytes: int
    bpw: float
    predicted_kld: float | None
    rewritten: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    wall_s: float


def quantize_decoder(
    source: Model | Path,
    kind: str,
    out: Path,
    *,
    calibration: "Callable[[], Calibration] | None" = None,
    importance: Importance | None = None,
    max_bytes: int | None = None,
    target: str | None = None,
    layout: Layout = "genai",
    dtype: Dtype = "F32",
    threads: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> DecoderResult:
    """Write a decoder with weights of few bits.

    Args:
        source: A Hugging Face directory or GGUF of full precision.
        kind: `int4`, `int8`, `int2`, or blocks such as `MatMulNBits4_b64_sym` for every matrix.
        out: Directory to write.
        calibration: Measures the model; with it matrices are encoded under their Hessians, else by rounding as ONNX
            Runtime's default quantizer, bit for bit.
        importance: Instead of calibration: errors are weighed by the importance of their channels.
        max_bytes: Size of the graph and its weights: with calibration, the blocks of every matrix are then chosen for
            it, and `kind` does not matter.
        target: Execution provider it must run on: blocks that it does not run become ones that it does.
        layout: Who reads the directory: onnxruntime-genai (and Foundry Local), or transformers.js.
        dtype: Type of scales, norms, activations and the cache.
        threads: Threads; 0 for one per core.
        overwrite: Replace a directory that exists.
        progress: Told of matrices.

    Raises:
        UnsupportedFormatError: The type is not known.
        UnsupportedModelError: The model cannot be exported or read.
        MissingDependencyError: No environment to export in is named.
        BudgetError, PlanError: Nothing fits `max_bytes`, or the importance was measured on another model.
        OutputExistsError: The output exists.
    """
    check_directory(out := Path(out), overwrite=overwrite)
    if max_bytes is not None and calibration is None:
        raise KvantError("--max-size: needs --calibrate, which says what each matrix bears. Pass both.")
    runs = provider(target) if target else None
    model = source if isinstance(source, Model) else open_model(source)
    origin = open_export(model, progress=progress)
    started = time.monotonic()
    plan = checked_plan(origin, kind, is_known=max_bytes is None and bool(calibration or importance))
    measured = calibration() if calibration else None
    predicted = None
    if max_bytes is not None:
        choices = choices_of(origin, measured, dtype, runs=runs, threads=threads, progress=progress)
        chosen = choices.best(max_bytes)
        plan, predicted = choices.plan(types_of(chosen), "kvant"), total_cost(chosen.values())
    plan, rewritten = fitting_plan(origin.weights, plan, runs)
    known = known_of(model, measured, importance)
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        n_fitted = write_decoder(origin, plan, partial, known, dtype=dtype, threads=threads, progress=progress)
        written = read_decoder(partial)
        made = written.files if layout == "genai" else rearrange(partial, written, model, plan.types, dtype)
        names = [file.relative_to(partial) for file in made]
        put_directory(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = tuple(out / name for name in names)
    return DecoderResult(
        path=str(out), files=tuple(map(str, files)), type=plan.preset, types=counts(plan.types),
        n_fitted=n_fitted, size_bytes=sum(file.stat().st_size for file in files),
        bpw=8 * written.sizes.tensor_bytes / written.sizes.n_params, predicted_kld=predicted,
        rewritten=rewritten, remarks=importance_remarks(model, importance), wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def write_decoder(
    origin: Origin, plan: Plan, out: Path, known: Known, *, dtype: Dtype, threads: int = 0, progress: Progress = SILENT
) -> int:
    """Write a directory of onnxruntime-genai.

    Args:
        origin: The export.
        plan: Blocks of every matrix, by initializer.
        out: The directory; nothing is there yet.
        known: What encoders know beyond the weights.
        dtype: Type of scales, norms, activations and the cache.
        threads: Threads; 0 for one per core. Their number does not change a bit.
        progress: Told of matrices.

    Returns:
        How many matrices were encoded under a Hessian.
    """
    encoder = Encoder(origin, plan.types, known.curvatures, dtype, threads)
    done = {tensor_names(weight)[0] for weight in origin.weights}
    out.mkdir()
    progress.start("quantize", len(origin.weights), "matrices")
    write_graph(
        origin.graph(plan.types, known.notes(plan.preset), dtype), encoder.arrays(), out / GRAPH,
        on_tensor=lambda name: progress.advance("quantize", 1) if name in done else None,
    )  # fmt: skip
    progress.finish("quantize")
    copy_rest(origin.decoder, out)
    return encoder.n_fitted


def checked_plan(origin: Origin, kind: str, *, is_known: bool) -> Plan:
    """Return the plan of a type; refuse one that what was measured could not be used for.

    Raises:
        UnsupportedFormatError: There is no such type, or none of its blocks is encoded by what matters.
    """
    plan = named_plan(origin.weights, kind)
    if is_known and not any(can_fit(nbits_type(name)) for name in plan.types.values()):
        raise UnsupportedFormatError(
            f"type {kind}: no matrix of it is encoded by importance or Hessians, so --calibrate or --imatrix "
            f"would not be used. Leave them out, or use a type such as int4."
        )
    return plan


def check_directory(out: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds something else than a model of this kind, or one that may not be replaced.

    Raises:
        OutputExistsError: There is something.
        KvantError: There is no directory to write in.
    """
    if not out.parent.is_dir():
        raise KvantError(f"{out.parent}: is not a directory. Create it first.")
    if not out.exists():
        return
    marks = (out / CONFIG, out / "onnx")
    is_model = out.is_dir() and (any(mark.exists() for mark in marks) or not any(out.iterdir()))
    if not is_model or any(out.glob("*.safetensors")):
        raise OutputExistsError(f"{out}: is no directory that was made so, and is not replaced. Choose another name.")
    if not overwrite:
        raise OutputExistsError(f"{out}: exists already. Choose another name or pass --overwrite.")


def copy_rest(source: Decoder, out: Path) -> None:
    """Copy what is no part of the graph: configuration, tokenizer, chat template."""
    for file in sorted(source.file.parent.iterdir()):
        if file.is_file() and file not in source.files:
            shutil.copyfile(file, out / file.name)
