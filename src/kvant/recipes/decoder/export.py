"""Export a decoder to ONNX with onnxruntime-genai's model builder, offline, in an environment of its own.

The builder needs torch and transformers, which kvant does not: `KVANT_ONNX_PYTHON` names the Python that has them.
What it makes is kept in the cache, so that several types are made from one export.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from kvant.errors import EngineError, MissingDependencyError
from kvant.evaluate.base import identity
from kvant.files import cache_dir, trim_directories
from kvant.formats.huggingface.writer import write_huggingface
from kvant.formats.onnx.decoder import CONFIG, read_decoder
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.runtime.tokenizers import GENAI_PYTHON

PYTHON = GENAI_PYTHON
BUILDER = "onnxruntime_genai.models.builder"
TIMEOUT_S = 4 * 3600
MAX_CACHE_BYTES = 24 << 30
_TAIL = 3


def exported(model: Model, *, progress: Progress = SILENT) -> Path:
    """Return the directory of a model's float32 export, from the cache if it is there.

    Args:
        model: A Hugging Face directory or GGUF of full precision or any other types; GGUF is decoded on the way.
        progress: Told what is done.

    Raises:
        MissingDependencyError: No environment with the builder is named.
        EngineError: The builder fails.
    """
    directory = _place(model)
    home = directory.parent
    if is_exported(model):
        os.utime(directory)
        return directory
    python = builder_python()
    progress.say(f"Exporting {model.path.name} to ONNX with onnxruntime-genai's builder, once.")
    with tempfile.TemporaryDirectory(dir=home, prefix="export-") as name:
        folder = Path(name)
        source = model.path
        if not source.is_dir():
            source = folder / "huggingface"
            write_huggingface(model, source, dtype="F32", progress=progress)
        run_builder(python, source, folder / "out", folder / "cache")
        read_decoder(folder / "out")
        (folder / "out").replace(directory)
    trim_directories(home, MAX_CACHE_BYTES, keep=directory)
    return directory


def is_exported(model: Model) -> bool:
    """Say whether a model's export is in the cache."""
    return (_place(model) / CONFIG).is_file()


def builder_python() -> str:
    """Return the Python of the builder's environment.

    Raises:
        MissingDependencyError: It is not named or cannot import the builder.
    """
    python = os.environ.get(PYTHON, "")
    how = f"Make an environment as docs/how-to/onnx-language-models.md says and set {PYTHON} to its Python."
    if not python:
        raise MissingDependencyError(f"{PYTHON}: is not set, and exporting a decoder needs it. {how}")
    probe = f"import importlib.util as u; raise SystemExit(u.find_spec('{BUILDER}') is None)"
    try:
        done = subprocess.run([python, "-I", "-c", probe], capture_output=True, timeout=300)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"{PYTHON}: {python} cannot be run ({error}). {how}") from error
    if done.returncode:
        raise MissingDependencyError(f"{PYTHON}: {python} has no {BUILDER}. {how}")
    return python


def run_builder(python: str, source: Path, out: Path, cache: Path) -> None:
    """Run the builder on a directory; it neither goes online nor runs code of the model.

    Raises:
        EngineError: It fails or takes longer than `TIMEOUT_S`.
    """
    command = [python, "-I", "-m", BUILDER, "-i", str(source), "-o", str(out), "-p", "fp32", "-e", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(  # noqa: S603
            [*command, "-c", str(cache)], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S,
            env=os.environ | offline,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{source}: the builder took longer than {TIMEOUT_S} s. Export a smaller model.") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise EngineError(
            f"{source}: onnxruntime-genai's builder fails ({' | '.join(lines[-_TAIL:])[:600]}). "
            "See which architectures it knows, or stay with GGUF."
        )


def _place(model: Model) -> Path:
    return cache_dir("onnx") / identity(model.files)[:32]
