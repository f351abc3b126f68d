"""An MLX directory measured: quality of its weights in llama.cpp, speed and memory in mlx-lm."""

from pathlib import Path

import msgspec

from kvant.errors import EngineError, MissingDependencyError
from kvant.evaluate.baselogits import BaseLogits
from kvant.evaluate.score import VariantScore, score, speed_fields
from kvant.files import cache_dir
from kvant.formats.safetensors.reader import read_sharded, weight_files
from kvant.progress import SILENT, Progress
from kvant.recipes.cache import digest
from kvant.recipes.convert.convert import convert
from kvant.runtime.engines.mlx import ENGINE
from kvant.runtime.messages import Measured
from kvant.runtime.mlx import MLXProcess
from kvant.tensors import n_bytes


def measure(
    directory: Path, base: BaseLogits, *, n_weights: int, threads: int = 0, progress: Progress = SILENT
) -> VariantScore:
    """Measure a directory against the full-precision model's logits.

    The weights are decoded and run in llama.cpp: on a processor mlx-lm takes a minute for every window of text. Without
    mlx-lm speed and memory are left open.

    Args:
        directory: What was written.
        base: What to compare with.
        n_weights: Weights of the model.
        threads: Threads of the engine; 0 for one per core.
        progress: Told of the tokens run.
    """
    decoded = cache_dir("formats") / f"{digest(str(directory.resolve()))}.gguf"
    try:
        convert(directory, decoded, to="gguf", type="F32", overwrite=True, threads=threads)
        found = score(decoded, base, threads=threads, speed=False, progress=progress)
    finally:
        decoded.unlink(missing_ok=True)
    measured: Measured | None = None
    try:
        with MLXProcess() as process:
            process.open(directory)
            measured = process.speed(**ENGINE.speed._asdict())
    except (MissingDependencyError, EngineError) as error:
        progress.say(f"speed and memory were not measured: {error}")
    return msgspec.structs.replace(
        found, name=directory.name, path=str(directory),
        size_bytes=sum(file.stat().st_size for file in weight_files(directory)),
        bpw=8 * sum(map(n_bytes, read_sharded(directory).values())) / n_weights,
        **speed_fields(measured),
    )  # fmt: skip
