"""The other formats a model is wanted in: variants for the same budget, on the same scale as GGUF's.

for each format: types from fine to coarse ─► what the size allows ─► made ─► measured ─► the goal's best ─► delivered

With calibration and a size there is one variant to make, whose layers are chosen for that size; else the format's own
types are tried in turn. What was made and measured is kept in the cache.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from kvant._version import __version__
from kvant.devices.detect import Machine
from kvant.devices.memory import predict_ram
from kvant.errors import (
    BudgetError,
    EngineError,
    MissingDependencyError,
    OutputExistsError,
    UnsupportedModelError,
    ValueRangeError,
)
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore, score, speed_fields
from kvant.files import cache_dir, disk_errors, partial_path, sha256_file, trim_directories
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Prefixed, Progress
from kvant.quant.importance import Importance
from kvant.recipes import cache
from kvant.recipes.convert import convert
from kvant.recipes.goal import Goal
from kvant.recipes.measure.calibration import Calibration
from kvant.recipes.targets.mlx.write import to_mlx
from kvant.recipes.targets.onnx.export import is_exported
from kvant.recipes.targets.onnx.exporters import exporters
from kvant.recipes.targets.onnx.plan import Dtype
from kvant.recipes.targets.onnx.write import place, quantize_decoder
from kvant.runtime.messages import Measured
from kvant.runtime.mlx import MLXProcess
from kvant.runtime.ort_process import OrtProcess

Format = Literal["gguf", "mlx", "onnx"]
FORMATS: tuple[Format, ...] = ("gguf", "mlx", "onnx")
FITTED = "fitted"


class FormatType(msgspec.Struct, frozen=True):
    """A type of a format, and the least bits per weight that its matrices take."""

    type: str
    bpw: float


TYPES: dict[str, tuple[FormatType, ...]] = {
    "mlx": (
        FormatType("8bit", 8.5), FormatType("6bit", 6.5), FormatType("5bit", 5.5), FormatType("4bit-g32", 5),
        FormatType("4bit", 4.5), FormatType("3bit-g32", 4), FormatType("3bit", 3.5),
    ),
    "onnx": (FormatType("int8", 8.75), FormatType("int4", 4.625), FormatType("MatMulNBits4_b128", 4.15)),
}  # fmt: skip
"""From fine to coarse. Where quality is asked for, the first `TRIED` that fit are measured."""

ONNX_DTYPE: Dtype = "F16"
"""Scales of float16 are a tenth of the file less for the same divergence; a processor generates 2 to 12 % slower."""

MADE = 2
"""Raised when the same request makes other files than before, so that older ones in the cache are left alone."""

MAX_CACHE_BYTES = 24 << 30
TRIED = 2
MLX_SPEED = {"n_prompt": 64, "n_generate": 16, "repeats": 1}
"""MLX's products are slow on processors: more would take minutes."""


class FormatVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A variant in another format that was made and measured.

    Attributes:
        format: `mlx` or `onnx`.
        type: What was asked for; `fitted` if layers were chosen for the size.
        score: What was measured; `size_bytes` of its files of weights.
        memory_bytes: What was measured, and not less than llama.cpp is predicted to take for as many bytes at the
            context asked for: cache and activations are the model's, not the format's.
    """

    format: str
    type: str
    score: VariantScore
    memory_bytes: int

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"{self.format} {self.type}"

    @property
    def kld(self) -> float:
        """Mean KL divergence from the full-precision model, nats per token."""
        return self.score.kld_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What variants of other formats are made from and measured against.

    Attributes:
        model: The full-precision model.
        base: Its logits.
        calibration: What was measured of it; None to take the formats' own encoders.
        calibrate: The text of that, as asked for.
        importance: Instead of that, what an importance file says.
        imatrix: That file.
        goal: What is best.
        max_bytes: Largest size of the files of weights; None for none, like the two after it.
        max_ram_bytes: Most memory.
        min_tok_s: Slowest generation.
        context: Tokens of context that memory is predicted for.
        machine: Where it runs.
        threads: Threads.
        progress: Told of every step.
    """

    model: Model
    base: BaseLogits
    calibration: Calibration | None
    calibrate: str | None
    importance: Importance | None
    imatrix: Path | None
    goal: Goal
    max_bytes: int | None
    max_ram_bytes: int | None
    min_tok_s: float | None
    context: int
    machine: Machine
    threads: int
    progress: Progress = SILENT

    @property
    def statistics_sha256(self) -> str:
        """Hash of what encoders know beyond the weights; empty if that is nothing."""
        known = self.calibration or self.importance
        return known.sha256 if known else ""


def checked_formats(names: Sequence[str], model: Model) -> tuple[Format, ...]:
    """Check the formats asked for of a model, before hours of work.

    Raises:
        ValueRangeError: One is none that is searched, or GGUF is not among them.
        MissingDependencyError: ONNX is, the model was not exported yet, and there is no environment to do it in.
    """
    unknown = [name for name in names if name not in FORMATS]
    if unknown or "gguf" not in names:
        raise ValueRangeError(
            f"formats: {', '.join(names)} must be of {', '.join(FORMATS)} and hold gguf, whose engine measures the "
            f"original. For another format alone, use kvant quantize --to."
        )
    if "onnx" in names and not is_exported(model):
        exporters()
    return tuple(name for name in FORMATS if name in names)


def measure_formats(names: Sequence[Format], bench: Bench) -> tuple[list[FormatVariant], list[str]]:
    """Make and measure variants in every format but GGUF.

    Returns:
        The variants, and why formats have none to offer: what one engine cannot do must not cost the others' results.
    """
    found: list[FormatVariant] = []
    left_out: list[str] = []
    for name in names:
        if name == "gguf":
            continue
        try:
            measured = list(_measured(name, bench))
        except (EngineError, UnsupportedModelError, ValueRangeError) as error:  # the last: weights beyond float16
            left_out.append(f"{name}: {error}")
            continue
        taken = best(measured, bench)
        if taken is None:
            left_out.append(
                f"{name}: {'no variant keeps the limits' if measured else 'no type of it is small enough'}."
            )
        for variant in measured:  # scores stay, and making is quick
            if variant is not taken:
                shutil.rmtree(_place(variant.format, variant.type, bench), ignore_errors=True)
        found += measured
    return found, left_out


def best(found: Sequence[FormatVariant], bench: Bench) -> FormatVariant | None:
    """Return the variant to take, by the rules for GGUF; None if none keeps the limits."""
    keeping = [variant for variant in found if _keeps(variant, bench)]
    passing = [variant for variant in keeping if variant.kld <= bench.goal.max_kld]
    if bench.goal.kind == "size" and passing:
        return min(passing, key=lambda v: (v.score.size_bytes, v.kld))
    return None if bench.goal.is_strict else min(keeping, key=lambda v: v.kld, default=None)


def deliver_format(variant: FormatVariant, bench: Bench, out: Path, *, overwrite: bool) -> None:
    """Copy a variant's directory to its place, unless it is there; what is in the cache no more is made again.

    No links: readers of ONNX refuse weights that have two names.

    Raises:
        OutputExistsError: There is another directory of that name, and `overwrite` is false.
    """
    source, _ = _made(variant.format, variant.type, bench)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    if out.exists():
        if all(_is_same(file, out / file.relative_to(source)) for file in files):
            return
        if not overwrite:
            raise OutputExistsError(
                f"{out}: exists with other content. Choose another directory with -o or pass --overwrite."
            )
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with disk_errors(out):
            shutil.copytree(source, partial)
        place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def command(variant: FormatVariant, bench: Bench, source: Path, out: Path) -> list[str]:
    """Return the words of the command that makes a variant again."""
    words = ["kvant", "quantize", str(source), "--to", variant.format]
    words += [] if variant.type == FITTED else ["-t", variant.type]
    words += ["--dtype", ONNX_DTYPE] if variant.format == "onnx" else []
    words += ["--calibrate", bench.calibrate] if bench.calibrate else []
    words += ["--imatrix", str(bench.imatrix)] if bench.importance else []
    words += ["--max-size", str(bench.max_bytes)] if variant.type == FITTED else []
    return [*words, "-o", out.name]


def _measured(name: Format, bench: Bench) -> Iterator[FormatVariant]:
    limit = bench.max_bytes
    if bench.calibration and limit and bench.goal.kind == "quality":
        variant = _try(name, FITTED, bench)
        if variant:
            yield variant
        return
    weights = sum(t.shape[0] * t.shape[1] for t in bench.model.tensors.values() if len(t.shape) == 2)
    fitting = [kind for kind in TYPES[name] if limit is None or weights * kind.bpw / 8 <= limit]
    kept = 0
    for kind in fitting:
        variant = _try(name, kind.type, bench)
        if variant is None:
            continue
        yield variant
        kept += 1
        if bench.goal.kind == "quality" and kept == TRIED:
            return
        if bench.goal.kind == "size" and variant.kld > bench.goal.max_kld:
            return


def _try(name: Format, kind: str, bench: Bench) -> FormatVariant | None:
    """Make and measure a variant; None if it is too large."""
    limit = bench.max_bytes
    key = cache.digest(
        "format", MADE, __version__, cache.source_key(bench.model), name, kind, limit if kind == FITTED else None,
        bench.statistics_sha256, bench.base.key, bench.machine.cpu, bench.threads,
    )  # fmt: skip
    found = cache.read_score(key)
    if found is None:
        try:
            directory, files = _made(name, kind, bench)
        except BudgetError as error:
            bench.progress.say(f"{name}: {error}")
            return None
        if limit is not None and sum(file.stat().st_size for file in files) > limit:
            return None  # before it is measured, which takes longest
        progress = Prefixed(bench.progress, f"{name} {kind}")
        found = _MEASURERS[name](directory, files, bench, progress)
        found = msgspec.structs.replace(found, name=f"{name} {kind}", path="")
        cache.write_score(key, found)
    if limit is not None and found.size_bytes > limit:
        return None
    bench.progress.say(
        f"{name} {kind}: {found.size_bytes / 1e6:.1f} MB, mean KLD {found.kld_mean:.4f} ± {found.kld_se:.4f}"
    )
    predicted = predict_ram(bench.model, found.size_bytes, bench.context).total_bytes
    return FormatVariant(format=name, type=kind, score=found, memory_bytes=max(predicted, found.rss_bytes or 0))


def _made(name: str, kind: str, bench: Bench) -> tuple[Path, tuple[Path, ...]]:
    """Return a variant's directory and its files of weights, made unless the cache has it whole."""
    directory = _place(name, kind, bench)
    if not directory.is_dir():  # both writers put a directory in place when it is whole
        _MAKERS[name](kind, directory, bench)
        trim_directories(directory.parent, MAX_CACHE_BYTES, keep=directory)
    os.utime(directory)
    files = (path for path in directory.iterdir() if path.suffix in (".safetensors", ".onnx", ".data"))
    return directory, tuple(sorted(files))


def _place(name: str, kind: str, bench: Bench) -> Path:
    """Where the cache keeps a variant."""
    key = cache.digest(
        "files", MADE, __version__, cache.source_key(bench.model), name, kind,
        bench.max_bytes if kind == FITTED else None, bench.statistics_sha256,
    )  # fmt: skip
    return cache_dir("formats") / key


def _make_mlx(kind: str, out: Path, bench: Bench) -> None:
    to_mlx(
        bench.model, out, type="4bit" if kind == FITTED else kind, calibrate=bench.calibration,
        importance=bench.importance, max_size_bytes=bench.max_bytes if kind == FITTED else None, threads=bench.threads,
        progress=bench.progress,
    )  # fmt: skip


def _make_onnx(kind: str, out: Path, bench: Bench) -> None:
    known = bench.calibration
    quantize_decoder(
        bench.model.path, "int4" if kind == FITTED else kind, out, calibration=(lambda: known) if known else None,
        importance=bench.importance, max_bytes=bench.max_bytes if kind == FITTED else None, dtype=ONNX_DTYPE,
        threads=bench.threads, progress=bench.progress,
    )  # fmt: skip


def _measure_onnx(directory: Path, files: tuple[Path, ...], bench: Bench, progress: Progress) -> VariantScore:
    return score(directory, bench.base, files=files, threads=bench.threads, engine=OrtProcess, progress=progress)


def _measure_mlx(directory: Path, files: tuple[Path, ...], bench: Bench, progress: Progress) -> VariantScore:
    """Quality of the decoded weights in llama.cpp, which MLX itself takes a minute per window for on a processor."""
    model = open_model(directory)
    plain = directory.with_name(directory.name + ".gguf")
    try:
        convert(directory, plain, to="gguf", type="F32", overwrite=True)
        found = score(plain, bench.base, threads=bench.threads, speed=False, progress=progress)
    finally:
        plain.unlink(missing_ok=True)
    measured: Measured | None = None
    try:
        with MLXProcess() as process:
            process.open(directory)
            measured = process.speed(**MLX_SPEED)
    except (MissingDependencyError, EngineError) as error:
        progress.say(f"speed and memory were not measured: {error}")
    return msgspec.structs.replace(
        found, size_bytes=sum(file.stat().st_size for file in files), bpw=8 * model.tensor_bytes / model.n_weights,
        **speed_fields(measured),
    )  # fmt: skip


_MAKERS: dict[str, Callable[[str, Path, Bench], None]] = {"mlx": _make_mlx, "onnx": _make_onnx}
_MEASURERS: dict[str, Callable[[Path, tuple[Path, ...], Bench, Progress], VariantScore]] = {
    "mlx": _measure_mlx,
    "onnx": _measure_onnx,
}


def _keeps(variant: FormatVariant, bench: Bench) -> bool:
    speed = variant.score.tg_tok_s
    is_large = bench.max_ram_bytes is not None and variant.memory_bytes > bench.max_ram_bytes
    is_slow = bench.min_tok_s is not None and speed is not None and speed < bench.min_tok_s
    return not (is_large or is_slow)


def _is_same(one: Path, other: Path) -> bool:
    if not other.is_file() or other.stat().st_size != one.stat().st_size:
        return False
    return sha256_file(one) == sha256_file(other)
