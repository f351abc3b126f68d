"""Measure a model's importance matrix on calibration text and write it as a file that llama.cpp reads.

text ── windows of tokens ── llama.cpp, watched (calibrate/importance.py) ── importance file, .gguf or .dat
"""

from pathlib import Path

import msgspec

from kvant._version import __version__
from kvant.calibrate.importance import measure
from kvant.devices.limits import cores
from kvant.files import cache_dir, check_apart, check_output
from kvant.formats.imatrix import write_imatrix
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes import cache
from kvant.recipes.measure.base import f32_file
from kvant.recipes.measure.calibration import SEED, WINDOWS, read_text
from kvant.recipes.measure.textname import BUNDLED
from kvant.recipes.source import opened


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, and what it was measured on.

    Attributes:
        path: The importance file.
        entries: Tensors it holds.
        text: Name of the text, as the file gives it.
        text_sha256: Hash of the text; of text that the model wrote, of its tokens.
        windows: Windows that were run.
        tokens: Tokens in them.
    """

    path: str
    entries: int
    text: str
    text_sha256: str
    windows: int
    tokens: int


def calibrate(
    source: Model | Path | str, out: Path | str, *, text: str = BUNDLED, windows: int = WINDOWS, seed: int = SEED,
    threads: int = 0, overwrite: bool = False, progress: Progress = SILENT,
) -> Calibrated:  # fmt: skip
    """Write a model's importance file.

    Args:
        source: The model, or its Hugging Face directory or GGUF of F32, BF16 or F16.
        out: The file; `.dat` gives llama.cpp's old layout, any other ending its GGUF layout.
        text: `bundled` for kvant's own calibration text, `self` for text that the model writes, or a UTF-8 file.
        windows: Most windows of 512 tokens.
        seed: Of the text that the model writes.
        threads: Threads of the engine; 0 for one per core.
        overwrite: Replace a file that exists.
        progress: Told of what is done.

    Raises:
        OutputExistsError: The file exists and `overwrite` is false.
        FormatError: The text cannot be read, or the model is quantized.
        EngineError: llama.cpp cannot run the model.
        ValueRangeError: The text is shorter than a window.
    """
    out = Path(out)
    check_output(out, overwrite=overwrite)
    model = opened(source, progress=progress)
    check_apart(out, (model.path, *model.files))
    base, used, cuts = read_text(model, text, windows=windows, seed=seed, progress=progress)
    directory = cache_dir("importance") / cache.digest("importance", __version__, base, cuts.tokens.tobytes())[:32]
    found = measure(
        f32_file(model, progress=progress)[0], model, cuts.tokens, directory=directory, threads=threads or cores(),
        datasets=(used.label,), progress=progress,
    )  # fmt: skip
    write_imatrix(out, found, overwrite=overwrite)
    return Calibrated(
        path=str(out), entries=len(found.entries), text=used.label, text_sha256=used.sha256,
        windows=found.n_chunks, tokens=int(cuts.tokens.size),
    )  # fmt: skip
