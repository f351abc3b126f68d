"""What is done with the models in the store, one function per command of the same name.

All take the `Store` to work on; by default it is kvant's own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvant.errors import FormatError, ModelNameError, OutputExistsError, ValueRangeError
from kvant.formats.gguf.reader import read_gguf
from kvant.hub.bundle import is_bundle
from kvant.hub.check import Check
from kvant.hub.collect import Collected
from kvant.hub.manifest import ModelSettings
from kvant.hub.names import ModelName
from kvant.hub.passports import beside
from kvant.hub.store import Store, StoredModel
from kvant.progress import SILENT, Progress

_VARIANT = re.compile(r"(?P<model>.+)[-._](?P<tag>(?:I?Q|TQ|BF|F|MXFP)\d\w*)", re.IGNORECASE)
_EYES = re.compile(r"mmproj[-._]+(?=[^-._])", re.IGNORECASE)
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came into the store.

    Attributes:
        models: The models; of a GGUF file one.
        grown_bytes: By how much the store grew: it may have had parts of them already.
    """

    models: tuple[StoredModel, ...]
    grown_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What went out of the store.

    Attributes:
        models: The models, as they were.
        freed_bytes: By how much the store shrank: other models may need parts of them.
    """

    models: tuple[StoredModel, ...]
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What the store holds.

    Attributes:
        models: All models, by name.
        usage_bytes: What it takes.
        quota_bytes: Most that it may take; None for no limit of its own.
    """

    models: tuple[StoredModel, ...]
    usage_bytes: int
    quota_bytes: int | None


def copy(
    source: str | ModelName, target: str | ModelName, *, overwrite: bool = False, store: Store | None = None
) -> StoredModel:
    """Give a stored model a second name; its bytes are kept once.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelNameError: The second name is none for a new model.
        OutputExistsError: Another model has it, and `overwrite` is false.
    """
    store = store or Store.open()
    _check_free(store, target, overwrite=overwrite)
    return store.copy(source, target)


def export(
    names: Sequence[str | ModelName], out: Path | str, *, overwrite: bool = False, store: Store | None = None,
    progress: Progress = SILENT,
) -> Path:  # fmt: skip
    """Write stored models to one file that `import_` reads, for machines without a network; return its path.

    Raises:
        ModelNotFoundError: One is not there.
        OutputExistsError: The file exists, and `overwrite` is false.
        StoreError: An object is missing or damaged.
    """
    (store or Store.open()).export(names, Path(out), progress, overwrite=overwrite)
    return Path(out)


def fsck(*, repair: bool = False, store: Store | None = None, progress: Progress = SILENT) -> Check:
    """Hash every byte of the store, say what is wrong, and repair what can be repaired if asked to."""
    return (store or Store.open()).fsck(repair, progress)


def gc(*, pack: bool = False, quota: int | Literal["none"] | None = None, store: Store | None = None) -> Collected:
    """Remove what no model in the store needs, and limit it.

    Args:
        pack: Keep models that share bytes in parts, until they are used again.
        quota: Most bytes that the store may take from now on; `none` for no limit, None for what holds already.
        store: The store.

    Raises:
        StoreError: A name cannot be read, so what it needs is not known; nothing is removed.
    """
    store = store or Store.open()
    if quota is not None:
        store.quota = None if quota == "none" else quota
    return store.gc(pack=pack)


def import_(
    file: Path | str, name: str | None = None, *, overwrite: bool = False, move: bool = False,
    store: Store | None = None, progress: Progress = SILENT,
) -> Imported:  # fmt: skip
    """Put a GGUF file, with the passport beside it, or a bundle that `export` wrote into the store.

    Args:
        file: The file, any shard of one, or the bundle.
        name: What to call it; by default what its file or bundle says.
        overwrite: Take a name that another model has.
        move: Take the GGUF file away instead of copying it.
        store: The store.
        progress: Told the bytes.

    Raises:
        FormatError: It is neither, damaged, or its passport is of a newer form.
        ModelNameError: The name is none for a new model, or the file says none.
        OutputExistsError: Another model has the name, and `overwrite` is false.
        QuotaError: The store would grow beyond its quota.
        ValueRangeError: `move`, and it is a bundle.
    """
    file = Path(file)
    if not file.is_file():
        raise FormatError(f"{file}: is not a file. Give the path of a GGUF file or a bundle.")
    store = store or Store.open()
    before = store.usage()
    if is_bundle(file):
        if move:
            raise ValueRangeError(f"move: {file} is a bundle, which is copied from. Leave it out.")
        models = tuple(store.import_bundle(file, progress, name=name, overwrite=overwrite))
    else:
        target = name or name_of_file(file)
        _check_free(store, target, overwrite=overwrite)
        models = (store.import_file(file, target, _settings(file), progress=progress, move=move),)
    return Imported(models=models, grown_bytes=store.usage() - before)


def list_(*, store: Store | None = None) -> Listed:
    """Say which models the store holds, and what it takes."""
    store = store or Store.open()
    return Listed(models=tuple(store.list()), usage_bytes=store.usage(), quota_bytes=store.quota)


def rm(names: Sequence[str | ModelName], *, store: Store | None = None) -> Removed:
    """Remove models from the store, and the bytes that no other model there needs.

    Raises:
        ModelNotFoundError: One is not there, or has another digest than its name says; nothing is removed then.
    """
    store = store or Store.open()
    parsed = list(dict.fromkeys(ModelName.parse(name) if isinstance(name, str) else name for name in names))
    for name in parsed:
        store.ledger.row(name)
    before = store.usage()
    removed = tuple(store.remove(name) for name in parsed)
    return Removed(models=removed, freed_bytes=before - store.usage())


def show(name: str | ModelName, *, store: Store | None = None) -> StoredModel:
    """Return a stored model: digest, size, settings, where it is from and what was measured of it.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    return (store or Store.open()).find(name, readable=False)


def name_of_file(file: Path) -> str:
    """Return the name that a file's name suggests: what looks like a variant becomes the tag.

    A projector, `mmproj-NAME-F16.gguf`, gets a tag of the model's own name, `NAME:mmproj-F16`, where it is found.

    Raises:
        ModelNameError: None of it can be a name.
    """
    stem = _SHARD.sub("", file.name.removesuffix(".gguf"))
    eyes = _EYES.match(stem)
    stem = stem[eyes.end() :] if eyes else stem
    match = _VARIANT.fullmatch(stem)
    model, tag = (match["model"], match["tag"]) if match else (stem, "latest")
    tag = f"mmproj-{tag}" if eyes and match else "mmproj" if eyes else tag
    model = re.sub(r"[^a-z0-9_.-]+|\.{2,}", "-", model.lower()).strip("-.")
    if not model:
        raise ModelNameError(f"{file.name}: says no name for the model. Give one after it.")
    return f"{model}:{tag}"


def _check_free(store: Store, name: str | ModelName, *, overwrite: bool) -> None:
    if store.has(name) and not overwrite:
        raise OutputExistsError(f"{name}: is in the store already. Choose another name or pass --overwrite.")


def _settings(file: Path) -> ModelSettings | None:
    """What belongs to a file beside its weights: where it is from, and the passport beside it; None without one."""
    passport = beside(file, sum(part.stat().st_size for part in read_gguf(file).files))
    source = str(file).encode(errors="replace").decode()
    return None if passport is None else ModelSettings(source=source, passport=passport)
