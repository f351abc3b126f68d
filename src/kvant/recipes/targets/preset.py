"""One preset of any format, written to a place of its own."""

from pathlib import Path

import msgspec

from kvant.devices.detect import detect
from kvant.devices.profiles import device_for
from kvant.errors import OutputExistsError
from kvant.files import check_apart, commit_file, partial_path
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Importance
from kvant.recipes.output import remove
from kvant.recipes.targets.base import Material
from kvant.recipes.targets.registry import find_target


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        path: The file or directory.
        target: Its format.
        preset: Preset of its plan.
        size_bytes: Bytes of its files of weights.
        bpw: Bits per weight over all tensors.
        remarks: What was left out or taken otherwise than it looks.
    """

    path: str
    target: str
    preset: str
    size_bytes: int
    bpw: float
    remarks: tuple[str, ...] = ()


def write_preset(
    model: Model | Path | str, target: str, preset: str, out: Path | None = None, *,
    importance: Importance | None = None, threads: int = 0, overwrite: bool = False, progress: Progress = SILENT,
) -> Written:  # fmt: skip
    """Write a model in a format with one of its presets.

    Args:
        model: The full-precision model, opened or a path.
        target: Name of the format.
        preset: Name of the preset.
        out: File or directory; by default named after model and preset in the working directory.
        importance: Weights of the input channels, if they are at hand.
        threads: Threads; 0 for one per core.
        overwrite: Replace a file that exists; a directory is never replaced.
        progress: Told of the work.

    Raises:
        PlanError: The format has no such preset.
        OutputExistsError: The output exists.
        KvantError: The model cannot be had in this format.
    """
    source = model if isinstance(model, Model) else open_model(model)
    made_in, machine = find_target(target), detect(measure=False)
    made_in.check(source)
    material = Material(
        model=source, machine=machine, device=device_for(None, machine), importance=importance, threads=threads,
        progress=progress,
    )  # fmt: skip
    workshop = made_in.open(material)
    (candidate,) = workshop.presets([preset])
    place = out or Path(made_in.output_name(source.path.resolve().name.removesuffix(".gguf"), candidate.preset))
    check_apart(place, (source.path, *source.files))
    if place.exists() and (place.is_dir() or not overwrite):
        raise OutputExistsError(f"{place}: exists already. Choose another name or pass --overwrite for a file.")
    fresh = partial_path(place)
    remove(fresh)
    try:
        workshop.write(candidate.plan, fresh, is_fitted=candidate.is_fitted, threads=threads, progress=progress)
        commit_file(fresh, place)
    finally:
        remove(fresh)
    return Written(
        path=str(place), target=made_in.name, preset=candidate.preset, size_bytes=candidate.size_bytes,
        bpw=candidate.bpw, remarks=workshop.remarks(candidate),
    )  # fmt: skip
