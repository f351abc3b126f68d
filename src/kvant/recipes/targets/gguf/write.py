"""Quantize a model by a plan: read, encode and write as one stream, resumable, with the size known beforehand.

Tensor bytes equal those of llama.cpp's own quantizer for the same plan (tests/parity/test_presets.py); metadata has
`kvant.*` keys in addition.
"""

import hashlib
import re
import time
from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.dtypes import NEW_TYPES, block_type
from kvant.errors import PlanError
from kvant.evaluate.corpora import CALIBRATION_HASH_KEY
from kvant.files import check_output, disk_errors, partial_path
from kvant.formats.gguf.kinds import MODEL, PROJECTOR
from kvant.formats.gguf.writer import GGUFWriter, TensorInfo, file_layout, write_gguf
from kvant.metadata import Value, ValueType, string, u32
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.curvature import Curvatures
from kvant.quant.grids import kept_as, loss_again
from kvant.quant.importance import Importance, without_zero_runs
from kvant.quant.journal import Journal
from kvant.quant.matching import check_fits, is_used, match_importance, run_length
from kvant.quant.plan import KEEP, Fallback, Plan, check_plan, needs_importance
from kvant.quant.presets import plan_preset
from kvant.quant.roles import file_order
from kvant.quant.stream import Job, encode_stream, encoded_tensor
from kvant.recipes.convert.loadable import check_loads, is_checked
from kvant.recipes.source import open_model
from kvant.tensors import n_bytes
from kvant.units import counted

QUANTIZATION_VERSION = 2
"""Version of ggml's block layouts. Source: ggml.h `GGML_QNT_VERSION`."""

SYNC_BYTES = 256 << 20
"""Bytes written between two notes in the journal: what a crash can cost."""

_TYPE_SUFFIX = re.compile(r"[-._](?:f32|f16|bf16)$", re.IGNORECASE)

_IMATRIX_STRING_BYTES = 127
"""Upstream cuts the strings of `quantize.imatrix.*` to this length."""


class QuantizeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        path: The file, or the first shard.
        files: All files written.
        preset: Preset of the plan.
        size_bytes: Bytes of all files.
        source_bytes: Bytes of the source's tensors.
        bpw: Bits per weight over all tensors.
        types: Tensors of each type.
        fallbacks: Tensors that did not get what the preset asks for.
        resumed_tensors: Tensors taken over from an interrupted run.
        remarks: What was left out or taken otherwise than it looks.
        wall_s: Seconds it took.
    """

    path: str
    files: tuple[str, ...]
    preset: str
    size_bytes: int
    source_bytes: int
    bpw: float
    types: dict[str, int]
    fallbacks: tuple[Fallback, ...]
    resumed_tensors: int
    remarks: tuple[str, ...] = ()
    wall_s: float


def predict_size(
    model: Model, plan: Plan, importance: Importance | None = None, curvatures: Curvatures | None = None
) -> int:
    """Return the exact size in bytes of the file that `quantize` writes, without encoding anything."""
    return file_layout(output_metadata(model, plan, importance, curvatures), _infos(model, plan)).total_bytes


def with_size(model: Model, plan: Plan, importance: Importance | None = None) -> Plan:
    """Return the plan with the predicted size of its file filled in."""
    return msgspec.structs.replace(plan, predicted_bytes=predict_size(model, plan, importance))


def default_output(model: Model, plan: Plan) -> Path:
    """Return `<model>-<preset>.gguf` in the current directory; the type in a source's name is taken off."""
    stem = model.path.resolve().name if model.path.is_dir() else model.path.stem
    return Path(f"{_TYPE_SUFFIX.sub('', stem)}-{plan.preset}.gguf")


def quantize(
    model: Model | Path | str,
    plan: Plan | str,
    out: Path | str,
    *,
    importance: Importance | None = None,
    curvatures: Curvatures | None = None,
    threads: int = 0,
    max_file_bytes: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_requantize: bool = False,
    progress: Progress = SILENT,
) -> QuantizeResult:
    """Write a model as GGUF with the block types of a plan.

    Args:
        model: The source, opened or a path, of any format read here.
        plan: Block type of every tensor, or the name of a preset.
        out: File to write.
        importance: Weights of the input channels; plans with the lowest types need it.
        curvatures: Hessians of the matrices; those that have one are encoded under it, where their type can be.
        threads: Pieces encoded at a time; 0 for one per core.
        max_file_bytes: Write shards of at most this size where one file would be longer; such a run cannot be resumed.
        resume: Continue an interrupted run of the same work if there is one; the file comes out the same.
        overwrite: Replace an existing file.
        allow_requantize: Accept a source whose tensors are quantized already, at a loss.
        progress: Told the source bytes done.

    Returns:
        What was written.

    Raises:
        PlanError: The plan does not fit the model, needs importance, or would quantize twice.
        ValueRangeError: A weight is NaN or infinite.
        OutputExistsError: The file exists and `overwrite` is false, or is the source.
        UnsupportedModelError: The engine would not load the file.
        KvantError: The disk is full.
    """
    started = time.monotonic()
    out = Path(out)
    if not isinstance(model, Model):
        model = open_model(model, kinds=(MODEL, PROJECTOR), progress=progress)
    if not isinstance(plan, Plan):
        plan = plan_preset(model, plan, has_importance=importance is not None)
    check_work(model, plan, importance, curvatures, allow_requantize=allow_requantize)
    check_output(out, overwrite=overwrite, read=(model.path, *model.files))
    jobs = plan_jobs(model, plan, importance, curvatures, threads=threads)
    metadata, infos = output_metadata(model, plan, importance, curvatures), _infos(model, plan)
    if is_checked(model):
        check_loads(metadata, infos, out, model.path)
    if max_file_bytes is not None:
        tensors = [encoded_tensor(job, threads=threads) for job in jobs]
        files = write_gguf(
            out, metadata, tensors, overwrite=overwrite, max_file_bytes=max_file_bytes, progress=progress
        )
        return _result(model, plan, importance, files, 0, started)
    journal = Journal(_journal_path(out), _work(model, plan, importance, curvatures))
    done = journal.done() if resume and partial_path(out).exists() else 0
    if done:
        progress.say(f"{out}: {done} of {len(jobs)} tensors are there already; continuing.")
    try:
        if not done:
            with disk_errors(out):
                journal.start()
        with GGUFWriter(out, metadata, infos, overwrite=overwrite, done=done, keep_partial=True) as writer:
            _write(writer, journal, jobs[done:], threads, progress)
    except Exception:  # only an interrupted run is worth continuing: after an error nothing stays on the disk
        partial_path(out).unlink(missing_ok=True)
        journal.remove()
        raise
    journal.remove()
    return _result(model, plan, importance, (out,), done, started)


def unmeasured(
    model: Model, plan: Plan, importance: Importance | None, curvatures: Curvatures | None = None
) -> list[str]:
    """Return the tensors that need importance for this plan and have neither that nor a Hessian."""
    measured = importance.entries if importance else {}

    def is_fitted(name: str) -> bool:
        return (
            curvatures is not None and curvatures.encoder(model.tensors[name], block_type(plan.types[name])) is not None
        )

    return [name for name in needs_importance(plan, model) if name not in measured and not is_fitted(name)]


def check_work(
    model: Model,
    plan: Plan,
    importance: Importance | None,
    curvatures: Curvatures | None = None,
    *,
    allow_requantize: bool,
) -> None:
    """Check before any work that a plan can be carried out.

    Raises:
        PlanError: The plan does not fit the model, needs importance, or would quantize twice.
    """
    check_plan(plan, model)
    if importance is not None:
        check_fits(importance, model)
    missing = unmeasured(model, plan, importance, curvatures)
    if missing and importance is not None:
        raise PlanError(
            f"{missing[0]}: {plan.types[missing[0]]} without importance loses the model, and "
            f"{importance.source or 'the importance'} has none for it ({len(missing)} tensors). Measure it again for "
            f"all tensors: kvant calibrate {model.path}."
        )
    if missing:
        raise PlanError(
            f"{missing[0]}: {plan.types[missing[0]]} without importance loses the model ({len(missing)} tensors). "
            f"Pass --imatrix FILE, or choose a type of more bits such as Q3_K_M."
        )
    tensors = model.tensors
    twice = [n for n, t in tensors.items() if t.block_type.is_quantized and t.block_type.name != plan.types[n]]
    twice += model.stored
    if twice and not (allow_requantize or model.is_base or plan.preset == KEEP):
        found = model.stored[twice[0]].kind if twice[0] in model.stored else tensors[twice[0]].block_type
        raise PlanError(
            f"{twice[0]}: is {found} already; as {plan.types[twice[0]]} it would lose twice "
            f"({len(twice)} tensors). Start from the F16 or BF16 model, or pass --allow-requantize."
        )


def plan_jobs(
    model: Model, plan: Plan, importance: Importance | None, curvatures: Curvatures | None = None, *, threads: int = 0
) -> list[Job]:
    """Return what to encode, in the order of the file; `threads` factor each Hessian.

    Raises:
        PlanError: The importance was measured on another model.
    """
    jobs = []
    for name in file_order(model.tensors):
        target = block_type(plan.types[name])
        tensor = kept_as(model, name, target) if plan.preset == KEEP else model.tensors[name]
        encodes = target.is_quantized and tensor.block_type != target
        weights = importance.weights_for(tensor) if encodes and importance else None
        weights = None if weights is None else without_zero_runs(weights, run_length(target))
        encoder = curvatures.encoder(tensor, target, threads=threads) if encodes and curvatures else None
        jobs.append(Job(tensor=tensor, target=target, importance=None if encoder else weights, encoder=encoder))
    return jobs


def output_metadata(
    model: Model, plan: Plan, importance: Importance | None = None, curvatures: Curvatures | None = None
) -> dict[str, Value]:
    """Return the metadata of the file, in upstream's order, with kvant's provenance at the end."""
    metadata = {k: v for k, v in model.metadata.items() if not k.startswith(("quantize.imatrix.", "split."))}

    def put(key: str, value: Value) -> None:
        metadata.pop(key, None)
        metadata[key] = value

    put("general.quantization_version", u32(QUANTIZATION_VERSION))
    put("general.file_type", u32(plan.file_type))
    if importance is not None and is_used(importance, model, plan):
        put("quantize.imatrix.file", string(_cut(importance.source)))
        if importance.datasets:
            put("quantize.imatrix.dataset", string(_cut(importance.datasets[0])))
        put("quantize.imatrix.entries_count", u32(len(importance.entries.keys() & model.tensors.keys())))
        if importance.n_chunks > 0:
            put("quantize.imatrix.chunks_count", u32(importance.n_chunks))
    put("kvant.version", string(__version__))
    put("kvant.preset", string(plan.preset))
    put("kvant.plan.sha256", string(plan.sha256))
    if curvatures is not None:
        put(CALIBRATION_HASH_KEY, string(curvatures.text_sha256))
        put("kvant.calibration.tokens", u32(curvatures.n_tokens))
        put("kvant.calibration.statistics.sha256", string(curvatures.sha256))
    put("kvant.source.name", string(model.known_as or model.path.name))
    put("kvant.source.size", Value(ValueType.UINT64, sum(file.stat().st_size for file in model.files)))
    return metadata


def _journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".journal")


def _cut(text: str) -> str:
    return text.encode()[:_IMATRIX_STRING_BYTES].decode("utf-8", "ignore")


def _infos(model: Model, plan: Plan) -> list[TensorInfo]:
    return [
        TensorInfo(name, model.tensors[name].shape, block_type(plan.types[name])) for name in file_order(model.tensors)
    ]


def _work(model: Model, plan: Plan, importance: Importance | None, curvatures: Curvatures | None) -> str:
    """Return a digest of all that decides the output's bytes; a journal of other work is not continued."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in model.files]
    measured = (importance.sha256 if importance else None, curvatures.sha256 if curvatures else None)
    facts = (__version__, plan.sha256, stats, measured)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _write(writer: GGUFWriter, journal: Journal, jobs: list[Job], threads: int, progress: Progress) -> None:
    """Write the pieces of jobs as they come, and note in the journal how far they are safe."""
    progress.start("quantize", sum(n_bytes(job.tensor) for job in jobs), "B")
    unsafe = 0
    try:
        for piece in encode_stream(jobs, threads=threads):
            writer.append(piece.data)
            progress.advance("quantize", piece.source_bytes)
            unsafe += piece.data.nbytes
            if piece.is_last and unsafe >= SYNC_BYTES:
                journal.note(writer.sync())
                unsafe = 0
    except KeyboardInterrupt:
        journal.note(writer.sync())
        progress.say("What is written so far is kept; the same command with --resume continues it.")
        raise
    progress.finish("quantize")


def remarks_on(model: Model, plan: Plan, importance: Importance | None) -> tuple[str, ...]:
    """Say what was left out of a model, what is rounded a second time, what its importance file did not do.

    And which of its types engines of a year ago refuse.
    """
    again = loss_again(model, plan.types) if plan.preset != KEEP else ""
    used = match_importance(importance, model, plan).remarks() if importance else ()
    new = new_types_in_words(plan)
    return (*model.remarks, *([again] if again else []), *used, *([new] if new else []))


def new_types_in_words(plan: Plan) -> str:
    """Say which types an older llama.cpp does not know; empty if it knows all."""
    counts = {kind: count for kind, count in sorted(plan.counts().items()) if kind in NEW_TYPES}
    if not counts:
        return ""
    what = " and ".join(f"{counted(count, 'tensor')} in {kind}" for kind, count in counts.items())
    return f"{what}: llama.cpp of 2025, and engines built on it, refuse the file. Use those of the middle of 2026 on."


def _result(
    model: Model, plan: Plan, importance: Importance | None, files: tuple[Path, ...], done: int, started: float
) -> QuantizeResult:
    return QuantizeResult(
        path=str(files[0]),
        files=tuple(map(str, files)),
        preset=plan.preset,
        size_bytes=sum(file.stat().st_size for file in files),
        source_bytes=model.tensor_bytes,
        bpw=plan.bpw(model),
        types=plan.counts(),
        fallbacks=plan.fallbacks,
        resumed_tensors=done,
        remarks=remarks_on(model, plan, importance),
        wall_s=time.monotonic() - started,
    )
