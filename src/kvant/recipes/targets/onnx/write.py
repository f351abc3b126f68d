"""Quantize a decoder's matrices into MatMulNBits and GatherBlockQuantized, as a directory of onnxruntime-genai.

source ── exported() ── float32 graph ── plan ── each matrix encoded ── OUT/model.onnx, model.onnx.data
calibration ── Hessians ──────────────────┴──────────┘                   OUT/genai_config.json, tokenizer
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.devices.providers import provider
from kvant.errors import KvantError, OutputExistsError, UnsupportedFormatError
from kvant.evaluate.corpora import CALIBRATION_HASH_KEY, CALIBRATION_NAME_KEY
from kvant.files import commit_file, partial_path
from kvant.formats.onnx.decoder import CONFIG, read_decoder
from kvant.formats.onnx.halves import as_half, halve
from kvant.formats.onnx.reader import read_onnx
from kvant.formats.onnx.weights import Weight, find_weights, replace, shape_name, tensor_names
from kvant.formats.onnx.writer import array_of, write_graph
from kvant.formats.open import open_model
from kvant.kernels.nbits import FITTED, Blocks, encode, fit, nbits_type
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures, diagonal
from kvant.quant.importance import Importance
from kvant.quant.matching import importance_remarks
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.targets.onnx.browser import rearrange
from kvant.recipes.targets.onnx.export import exported
from kvant.recipes.targets.onnx.plan import DecoderPlan, Dtype, best_plan, counts, fitting_plan, named_plan
from kvant.recipes.targets.onnx.rows import CHUNK_ROWS, Rows

if TYPE_CHECKING:
    import onnx

GRAPH = "model.onnx"
Layout = Literal["genai", "transformers.js"]
LAYOUTS: tuple[Layout, ...] = ("genai", "transformers.js")


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
    source: Path,
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
    model = open_model(source)
    origin = read_decoder(exported(model, progress=progress))
    started = time.monotonic()
    graph = read_onnx(origin.file)
    weights = find_weights(graph, origin.file)
    rows = Rows(tensors={t.name: t for t in graph.graph.initializer}, path=origin.file, model=model)
    plan = _plan(weights, kind, is_fitted=max_bytes is None and bool(calibration or importance))
    measured = calibration() if calibration else None
    if max_bytes is not None and measured is not None:
        plan = best_plan(
            weights, rows, measured, max_bytes, other_bytes=_other_bytes(graph, weights, dtype), runs=runs, dtype=dtype,
            threads=threads, progress=progress,
        )  # fmt: skip
    plan, rewritten = fitting_plan(weights, plan, runs)
    curvatures = measured.curvatures if measured else diagonal(importance, model.tensors) if importance else None
    encoder = Encoder(rows, plan, curvatures, threads, dtype)
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _note(graph, plan, curvatures, importance)
        _write_matrices(graph, weights, encoder, partial / GRAPH, progress)
        copy_rest(origin.file.parent, partial, origin.files)
        written = read_decoder(partial)
        made = written.files if layout == "genai" else rearrange(partial, written, model, plan.types, dtype)
        names = [file.relative_to(partial) for file in made]
        place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = tuple(out / name for name in names)
    return DecoderResult(
        path=str(out), files=tuple(map(str, files)), type=plan.name, types=counts(plan.types),
        n_fitted=encoder.n_fitted, size_bytes=sum(file.stat().st_size for file in files),
        bpw=8 * written.sizes.tensor_bytes / written.sizes.n_params, predicted_kld=plan.predicted_kld,
        rewritten=rewritten, remarks=importance_remarks(model, importance), wall_s=round(time.monotonic() - started, 3),
    )  # fmt: skip


def _plan(weights: tuple[Weight, ...], kind: str, *, is_fitted: bool) -> DecoderPlan:
    """Return the plan of a type; refuse one that what was measured could not be used for.

    Raises:
        UnsupportedFormatError: There is no such type, or none of its blocks is encoded by what matters.
    """
    plan = named_plan(weights, kind)
    kinds = [nbits_type(name) for name in plan.types.values()]
    if is_fitted and not any((k.bits, k.block, k.symmetric) in FITTED for k in kinds):
        raise UnsupportedFormatError(
            f"type {kind}: no matrix of it is encoded by importance or Hessians, so --calibrate or --imatrix "
            f"would not be used. Leave them out, or use a type such as int4."
        )
    return plan


def _write_matrices(
    graph: "onnx.ModelProto", weights: tuple[Weight, ...], encoder: "Encoder", path: Path, progress: Progress
) -> None:
    """Give a graph's matrices their blocks and write it, each encoded when its turn has come."""
    progress.start("quantize", len(weights), "matrices")
    for weight in weights:
        replace(graph, weight, nbits_type(encoder.plan.types[weight.name]))
    if encoder.dtype == "F16":
        halve(graph)
    done = {tensor_names(w)[0] for w in weights}
    write_graph(
        graph, encoder.arrays(weights), path,
        on_tensor=lambda name: progress.advance("quantize", 1) if name in done else None,
    )  # fmt: skip
    progress.finish("quantize")


class Encoder:
    """Encodes matrices as they are written, one at a time.

    Args:
        rows: Reads the weights.
        plan: Their types.
        curvatures: Hessians; None to round.
        threads: Threads.
        dtype: Type of all floats that are written.

    Attributes:
        n_fitted: Matrices encoded under a Hessian so far.
    """

    def __init__(
        self, rows: Rows, plan: DecoderPlan, curvatures: Curvatures | None, threads: int, dtype: Dtype = "F32"
    ) -> None:
        self.rows, self.plan, self.curvatures, self.threads, self.dtype = rows, plan, curvatures, threads, dtype
        self.n_fitted = 0

    def arrays(self, weights: tuple[Weight, ...]) -> dict[str, Callable[[], np.ndarray]]:
        """Return what makes every initializer of the new graph: the old ones but for the matrices, then those."""
        replaced = {weight.name for weight in weights}
        found: dict[str, Callable[[], np.ndarray]] = {
            name: (lambda t=tensor: array_of(t, self.rows.path))  # type: ignore[misc]
            for name, tensor in self.rows.tensors.items()
            if name not in replaced
        }
        for weight in weights:
            found |= self._tensors(weight)
        return {name: as_half(name, make) for name, make in found.items()} if self.dtype == "F16" else found

    def encode(self, weight: Weight) -> Blocks:
        """Encode a matrix: under Hessians where they were measured and its type can be, else by rounding."""
        kind = nbits_type(self.plan.types[weight.name])
        parts = self.rows.parts(weight)
        names = self.curvatures.names if self.curvatures else ()
        can = (kind.bits, kind.block, kind.symmetric) in FITTED and weight.columns % kind.block == 0
        if self.curvatures is None or not can or not parts or any(part.name not in names for part in parts):
            spans = [slice(at, at + CHUNK_ROWS) for at in range(0, weight.rows, CHUNK_ROWS)]
            return joined([encode(self.rows.read(weight, span), kind) for span in spans])
        found = []
        for part in parts:
            ready = self.curvatures.ready(part.name, threads=self.threads)
            for at in range(part.start, part.stop, CHUNK_ROWS):
                x = self.rows.read(weight, slice(at, min(part.stop, at + CHUNK_ROWS)))
                found.append(fit(x, kind, ready, threads=self.threads)[0])
        self.n_fitted += 1
        return joined(found)

    def _tensors(self, weight: Weight) -> dict[str, Callable[[], np.ndarray]]:
        kind = nbits_type(self.plan.types[weight.name])
        made: list[Blocks] = []
        codes, scales, zeros = tensor_names(weight)

        def first() -> np.ndarray:
            made.append(self.encode(weight))
            packed = made[0].packed_codes()
            shared = weight.product is not None
            return packed if shared else packed.reshape(weight.rows, -1)

        def last() -> np.ndarray:
            return made.pop().packed_zeros()

        found: dict[str, Callable[[], np.ndarray]] = {codes: first}
        if kind.symmetric:
            found[scales] = lambda: made.pop().scales
        else:
            found |= {scales: lambda: made[0].scales, zeros: last}
        shape = shape_name(weight)
        if shape:
            found[shape] = lambda: np.array([weight.rows, kind.code_bytes(weight.columns)], np.int64)
        return found


def joined(blocks: list[Blocks]) -> Blocks:
    """Put rows encoded one after the other into one."""
    return Blocks(
        kind=blocks[0].kind, n=blocks[0].n, codes=np.concatenate([b.codes for b in blocks]),
        scales=np.concatenate([b.scales for b in blocks]), zeros=np.concatenate([b.zeros for b in blocks]),
    )  # fmt: skip


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


def place(partial: Path, out: Path) -> None:
    """Give a finished directory its name; the old one is gone only when the new one is there."""
    if out.exists():
        old = out.with_name(out.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
        commit_file(partial, out)
        shutil.rmtree(old)
    else:
        commit_file(partial, out)


def copy_rest(source: Path, out: Path, graph: tuple[Path, ...]) -> None:
    """Copy what is no part of the graph: configuration, tokenizer, chat template."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file not in graph:
            shutil.copyfile(file, out / file.name)


def _note(
    graph: "onnx.ModelProto", plan: DecoderPlan, curvatures: Curvatures | None, importance: Importance | None
) -> None:
    """Write into the graph where it comes from."""
    entries = {"kvant.version": __version__, "kvant.type": plan.name}
    if curvatures is not None and curvatures.text_sha256:
        entries[CALIBRATION_HASH_KEY] = curvatures.text_sha256
    if importance is not None and importance.datasets:
        entries[CALIBRATION_NAME_KEY] = importance.datasets[0]
    kept = {p.key: p.value for p in graph.metadata_props} | entries
    del graph.metadata_props[:]
    for key, value in kept.items():
        graph.metadata_props.add(key=key, value=value)


def _other_bytes(graph: "onnx.ModelProto", weights: tuple[Weight, ...], dtype: Dtype) -> int:
    """Bytes of a file that are not matrices': other tensors, nodes, and the padding of all."""
    from kvant.formats.onnx.external import tensor_bytes
    from kvant.formats.onnx.writer import LINE, PAGE

    names = {weight.name for weight in weights}
    others = sum(tensor_bytes(t, Path()) for t in graph.graph.initializer if t.name not in names)
    others //= 2 if dtype == "F16" else 1  # what is not matrices is floats, but for a few shapes
    nodes = len(graph.SerializeToString()) + 400 * len(weights)
    return others + nodes + (PAGE + 3 * LINE) * len(weights) + LINE * len(graph.graph.initializer)
