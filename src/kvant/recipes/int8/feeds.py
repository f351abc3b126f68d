"""Named inputs to calibrate and measure on: .npz files, checked against the model's own inputs."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.errors import FormatError, LimitError, ValueRangeError
from kvant.runtime.ort_messages import Port
from kvant.units import format_bytes

HELD_OUT_EVERY = 4
"""Every fourth run is kept for measuring and not calibrated on."""

MAX_FEED_BYTES = 192 << 20
"""All inputs together; they go to ONNX Runtime's process in one message."""

MAX_FEEDS = 4096

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """Inputs of runs.

    Attributes:
        calibration: Those that ranges are found on.
        held_out: Those that accuracy is measured on.
    """

    calibration: tuple[Feed, ...]
    held_out: tuple[Feed, ...]


def read_feeds(path: Path, inputs: Sequence[Port]) -> Feeds:
    """Read inputs from a .npz file or a directory of such files, in the order of their names.

    A file is one run's inputs by name. Where its arrays have one axis more than the model's inputs, that axis counts
    runs.

    Args:
        path: The file or directory.
        inputs: The model's inputs.

    Raises:
        FormatError: A file is damaged, or holds something else than arrays of numbers.
        ValueRangeError: Names, types or shapes are not the model's, or there are fewer than two runs.
        LimitError: Too many runs or bytes.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    found: list[Feed] = []
    size = 0
    for file in files:
        for feed in _split(_arrays(file), inputs, file):
            _check(feed, inputs, file)
            size += sum(array.nbytes for array in feed.values())
            found.append(feed)
            if size > MAX_FEED_BYTES or len(found) > MAX_FEEDS:
                raise LimitError(
                    f"{path}: more than {format_bytes(MAX_FEED_BYTES)} or {MAX_FEEDS} runs of inputs. A few hundred "
                    "typical ones are enough."
                )
    if len(found) < 2:
        raise ValueRangeError(
            f"{path}: holds {len(found)} runs of inputs; at least two are needed, one of them to measure on. "
            "Save more .npz files, or arrays with an axis of runs in front."
        )
    held = [feed for i, feed in enumerate(found) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1] or found[-1:]
    used = [feed for feed in found if not any(feed is other for other in held)]
    return Feeds(calibration=tuple(used), held_out=tuple(held))


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with file.open("rb") as raw:
            archive = np.load(raw, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise FormatError(f"{file}: is no .npz file. Save named inputs with numpy.savez.")
            _check_size(file)
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{file}: cannot be read as .npz ({error}). Save named inputs with numpy.savez.") from error


def _check_size(file: Path) -> None:
    """Refuse an archive that unpacks to more than may be used, before it is unpacked."""
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_FEED_BYTES + (1 << 20):
        raise LimitError(
            f"{file}: unpacks to {format_bytes(size)}, above {format_bytes(MAX_FEED_BYTES)}. Save fewer runs."
        )


def _split(arrays: dict[str, np.ndarray], inputs: Sequence[Port], file: Path) -> list[Feed]:
    """Return one feed per run."""
    known = {port.name: port for port in inputs}
    ranks = {name: array.ndim - len(known[name].shape) for name, array in arrays.items() if name in known}
    if not ranks or set(ranks.values()) <= {0}:
        return [arrays]
    counts = {len(array) for array in arrays.values() if array.ndim}
    if set(ranks.values()) != {1} or len(counts) != 1:
        raise ValueRangeError(
            f"{file}: its arrays do not all have the model's axes, nor all one axis of runs in front. Save them alike."
        )
    return [{name: array[i] for name, array in arrays.items()} for i in range(counts.pop())]


def _check(feed: Feed, inputs: Sequence[Port], file: Path) -> None:
    wanted = {port.name for port in inputs}
    if set(feed) != wanted:
        raise ValueRangeError(
            f"{file}: holds inputs {sorted(feed)[:8]}, the model wants {sorted(wanted)[:8]}. Save them by these names."
        )
    for port in inputs:
        array = feed[port.name]
        fits = array.ndim == len(port.shape) and all(w in (-1, n) for w, n in zip(port.shape, array.shape, strict=True))
        if not fits or array.dtype != np.dtype(port.dtype):
            raise ValueRangeError(
                f"{file}: {port.name!r} is {array.dtype} {list(array.shape)}, the model wants {np.dtype(port.dtype)} "
                f"{list(port.shape)} (-1 is any length). Save it so."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueRangeError(f"{file}: {port.name!r} holds NaN or infinity. Leave such runs out.")
