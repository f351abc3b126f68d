"""The importance matrix as llama.cpp measures it: of every input channel the sum of x², every token counted once.

One pass of the engine over the text, for any architecture; of experts the tokens that came to each. `engine.py`
measures far more and weighs tokens; this is what an importance file holds, and what upstream's `llama-imatrix` gives on
the same tokens.

Source: llama.cpp `tools/imatrix/imatrix.cpp`; parity in tests/parity/test_importance.py.
"""

from pathlib import Path

import numpy as np

from kvant.calibrate.parts import Part, open_watched, take_part
from kvant.calibrate.statistics import squares_of
from kvant.files import atomic_write
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Entry, Importance
from kvant.runtime import messages
from kvant.runtime.observer import LOOKUP
from kvant.runtime.process import EngineProcess

WINDOWS_AT_A_TIME = 8
"""After which sums are kept, so that an interrupted run goes on from there."""


def measure(
    base: Path, model: Model, tokens: np.ndarray, *, directory: Path, threads: int, datasets: tuple[str, ...] = (),
    progress: Progress = SILENT,
) -> Importance:  # fmt: skip
    """Run a model over windows of tokens and sum the squares of what matrices inside its layers are multiplied with.

    What was summed up is not measured again.

    Args:
        base: GGUF of the model that the engine runs.
        model: The same model.
        tokens: Token ids, int32 [windows, tokens].
        directory: Where sums are kept, of these inputs alone; made if absent.
        threads: Threads of the engine.
        datasets: Names of the texts, to note in the result.
        progress: Told of tokens.

    Raises:
        EngineError: The engine cannot run the file, or shows it otherwise than is known.
        UnsupportedModelError: It multiplies with no matrix of the model.
        KvantError: The disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with EngineProcess() as engine:
        open_watched(engine, base, n_ctx=tokens.shape[1], threads=threads)
        parts = [
            part
            for part in take_part(engine, model, tokens[0], every=True)
            if part.role != LOOKUP and part.name.startswith("blk.")
        ]
        progress.start("importance", tokens.size, "tokens")
        totals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for first in range(0, len(tokens), WINDOWS_AT_A_TIME):
            batch = tokens[first : first + WINDOWS_AT_A_TIME]
            for name, found in _sums(engine, parts, batch, directory, first).items():
                before = totals.get(name)
                totals[name] = found if before is None else (before[0] + found[0], before[1] + found[1])
            progress.advance("importance", batch.size)
        progress.finish("importance")
    entries = {
        part.name: Entry(sums=sums.astype(np.float32), counts=counts.astype(np.float32))
        for part in parts
        for sums, counts in (totals[part.input],)
    }
    return Importance(entries=entries, datasets=datasets, n_chunks=tokens.shape[0], chunk_size=tokens.shape[1])


def _sums(
    engine: EngineProcess, parts: list[Part], tokens: np.ndarray, directory: Path, first: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return sums of x² and numbers of x of some windows, by the first tensor of each input; kept in a file."""
    inputs = list({part.input: part for part in parts}.values())
    path = squares_of(directory, f"{first}")
    if not path.exists():
        engine.sum_up([messages.Sum(p.input, p.columns, p.stack, moments=False, layer=-1) for p in inputs])
        for window in tokens:
            engine.observe(window, np.ones(len(window), np.float32))
        found = {part.input: engine.squares(part.input) for part in inputs}
        arrays = {
            f"{kind} {name}": value for name, pair in found.items() for kind, value in zip("sc", pair, strict=True)
        }
        with atomic_write(path, is_shared=True) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type, unused-ignore]
    with np.load(path) as kept:
        return {part.input: (kept[f"s {part.input}"], kept[f"c {part.input}"]) for part in inputs}
