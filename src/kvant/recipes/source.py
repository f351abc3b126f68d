"""The model a job starts from, of any format, by either converter.

A directory whose class kvant has no family of is converted by upstream's own converter, once: to the type that holds
its weights exactly, kept under kvant's cache by the content of all its files and of the converter. Jobs then work on
that file, and say so.
"""

import dataclasses
import os
import tempfile
from collections.abc import Collection
from pathlib import Path

from kvant.evaluate.base import identity
from kvant.files import cache_dir, trim_directories
from kvant.formats import open as formats
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.huggingface.staged import Checked, check_directory
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.cache import digest
from kvant.recipes.convert.upstream import converted, is_upstreams, keep, pretokenizer, ready
from kvant.runtime.converter.environment import Converter

CACHE = "upstream"
MAX_CACHE_BYTES = 64 << 30
REMARKS = "remarks.txt"


def opened(source: Model | Path | str, *, progress: Progress = SILENT) -> Model:
    """Return a model, which is opened where a path is given; see `open_model`."""
    return source if isinstance(source, Model) else open_model(source, progress=progress)


def open_model(
    path: Path | str, *, known_as: str = "", kinds: Collection[str] = ("model",), progress: Progress = SILENT
) -> Model:
    """Open a GGUF file or a Hugging Face directory; one of a class without a family of kvant's is converted first.

    Args:
        path: The file or directory.
        known_as: Name that goes into metadata in place of the file's or directory's own.
        kinds: What a GGUF may be: `model`, and for those that ask no more than tensors `mmproj`.
        progress: Told of a conversion.

    Raises:
        FormatError: It is damaged, or no format read here.
        UnsupportedFormatError: It is an adapter, an importance file or the like.
        UnsupportedModelError: A class or tokenizer that nobody knows.
        ConverterMissingError: Upstream's converter is needed and not installed.
        EngineError: It fails.
    """
    path = Path(path)
    if not is_upstreams(path):
        return formats.open_model(path, known_as=known_as, kinds=kinds)
    file, remarks = _converted_once(path, progress)
    model = formats.open_model(file, known_as=known_as or directory_identifier(path), kinds=kinds)
    how = f"{path.name} is worked on as {file.name}, which upstream's converter made of it; kept as {file}."
    return dataclasses.replace(model, origin=path, remarks=(how, *remarks, *model.remarks))


def _converted_once(directory: Path, progress: Progress) -> tuple[Path, tuple[str, ...]]:
    """Return the file of a directory's exact weights, from the cache if it is there, and what its making left out."""
    checked = check_directory(directory)
    converter = ready(directory, agreed=False, progress=progress)
    home = cache_dir(CACHE)
    place = home / _key(checked, converter)
    file = place / f"{checked.name}-{checked.exact.name}.gguf"
    if file.is_file():
        os.utime(place)
        return file, tuple((place / REMARKS).read_text(encoding="utf-8").splitlines())
    progress.say(f"Converting {directory} to {checked.exact} by {converter.title}, once; kept as {file}.")
    with tempfile.TemporaryDirectory(dir=home, prefix="convert-") as name:
        folder = Path(name) / "made"
        folder.mkdir()
        with converted(checked, folder / file.name, checked.exact, converter, progress=progress) as made:
            keep(made, folder / file.name)
        (folder / REMARKS).write_text("\n".join(line.replace("\n", " ") for line in made.remarks), encoding="utf-8")
        if not place.exists():  # another process may have been faster
            folder.replace(place)
    trim_directories(home, MAX_CACHE_BYTES, keep=place)
    return file, made.remarks


def _key(checked: Checked, converter: Converter) -> str:
    """Digest of all that decides the file's bytes."""
    return digest("upstream", checked.name, identity(checked.files), converter.digest, pretokenizer(checked.directory))[
        :32
    ]
