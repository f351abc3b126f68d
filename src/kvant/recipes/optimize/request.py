"""What is asked of optimize."""

from pathlib import Path

import msgspec

from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import SEED, WINDOWS


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of `optimize`.

    Attributes:
        source: Hugging Face directory or GGUF of the full-precision model.
        budget: Limits to keep.
        out: Directory to write to, made if absent; by default one named after the model in the working directory.
        formats: Formats to search: GGUF, and what else is wanted within the same limits; see `formats`.
        presets: Presets to consider; every sensible one if empty.
        imatrix: Importance file that variants are encoded with.
        calibrate: Text to measure the model on, `bundled`, `self` for what it writes itself, or a file; adds
            candidates that are encoded under Hessians.
        calibrate_windows: Most windows of 512 tokens of it.
        calibrate_seed: Of the labels drawn from the model's own predictions.
        refinements: Most mixes to measure for the size asked beyond the predicted best, each after the predictions were
            corrected by what was measured.
        context: Tokens of context that memory is predicted for.
        corpus: Bundled text to measure on.
        text: A file to measure on instead.
        chunks: Windows of 512 tokens to measure on; 0 for all the text holds.
        measure_all: Measure every variant that keeps the budget, not only those that may win.
        jobs: Variants made and measured at a time; more than one disturbs the speeds measured.
        threads: Threads in all; 0 for one per core.
        overwrite: Replace an output of the same name.
        accepted_licences: Licences that the person at the keyboard accepts, beside those the policy allows.
    """

    source: Path
    budget: Budget = Budget()
    out: Path | None = None
    formats: tuple[str, ...] = ("gguf",)
    presets: tuple[str, ...] = ()
    imatrix: Path | None = None
    calibrate: str | None = None
    calibrate_windows: int = WINDOWS
    calibrate_seed: int = SEED
    refinements: int = 4
    context: int = 4096
    corpus: str = "default"
    text: Path | None = None
    chunks: int = 16
    measure_all: bool = False
    jobs: int = 1
    threads: int = 0
    overwrite: bool = False
    accepted_licences: tuple[str, ...] = ()
