"""Export a decoder to ONNX, once: what an exporter makes is checked and kept, and every type is made from that.

model ── Hugging Face directory ── exporters.py, the first that manages ── same predictions as the model? ── cache
"""

import os
import tempfile
from pathlib import Path

from kvant.devices.limits import cores
from kvant.errors import EngineError, FormatError, UnsupportedModelError
from kvant.evaluate.base import identity
from kvant.evaluate.score import score
from kvant.files import cache_dir, trim_directories
from kvant.formats.huggingface.writer import write_huggingface
from kvant.formats.onnx.decoder import CONFIG
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.base import measured_text, prepare_base
from kvant.recipes.targets.onnx.exporters import exporters

MAX_CACHE_BYTES = 24 << 30
CHECKED_TOKENS = 256
MAX_KLD = 1e-3
"""Two engines in float32 are about 1e-6 apart; a wrong activation function or rotary angle is above .01."""


def exported(model: Model, *, progress: Progress = SILENT) -> Path:
    """Return the directory of a model's float32 export, from the cache if it is there.

    Args:
        model: A Hugging Face directory or GGUF of full precision or any other types; GGUF is decoded on the way.
        progress: Told what is done.

    Raises:
        MissingDependencyError: No environment with an exporter is named.
        EngineError: None manages, or what they make predicts otherwise than the model.
    """
    directory = _place(model)
    home = directory.parent
    if is_exported(model):
        os.utime(directory)
        return directory
    python, programs = exporters()
    with tempfile.TemporaryDirectory(dir=home, prefix="export-") as name:
        folder = Path(name)
        source = model.path
        if not source.is_dir() or model.is_mended:  # exporters read the files, and not what they are here
            source = folder / "huggingface"
            write_huggingface(model, source, dtype="F32", progress=progress)
        failures = []
        for program in programs:
            out = folder / program.package
            progress.say(f"Exporting {model.path.name} to ONNX with {program.name}, once.")
            try:
                program.run(python, source, out, folder / "cache")
                check_export(out, model, program.name, progress=progress)
                break
            except (EngineError, FormatError, UnsupportedModelError) as error:
                failures.append(str(error))
        else:
            raise EngineError(
                " ".join(failures) + " Stay with GGUF or MLX, or see whether other versions of the exporters manage."
            )
        out.replace(directory)
    trim_directories(home, MAX_CACHE_BYTES, keep=directory)
    return directory


def is_exported(model: Model) -> bool:
    """Say whether a model's export is in the cache."""
    return (_place(model) / CONFIG).is_file()


def check_export(directory: Path, model: Model, exporter: str, *, progress: Progress = SILENT) -> None:
    """Compare an export's predictions with the model's own in llama.cpp, on the first tokens of the bundled text.

    Raises:
        EngineError: They differ.
    """
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="check-") as folder:
        against: Model | Path = model
        if model.quantized_types:  # what they decode to is what was exported
            against = Path(folder) / "base.gguf"
            convert(model, against, to="gguf", type="F32")
        _, base = prepare_base(
            against, text=measured_text(None), context=CHECKED_TOKENS, chunks=1, threads=cores(), progress=progress
        )
        found = score(directory, base, speed=False, progress=progress)
    if not found.kld_mean <= MAX_KLD:
        raise EngineError(
            f"{model.path}: what {exporter} makes predicts other tokens than the model (KL divergence "
            f"{found.kld_mean:.3g}, of which at most {MAX_KLD:g} is rounding)."
        )


def _place(model: Model) -> Path:
    return cache_dir("onnx") / identity(model.files)[:32]
