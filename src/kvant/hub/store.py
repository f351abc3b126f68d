"""The local store of models: content-addressed, shared between processes, safe against power cuts.

What lies where is told in `disk`; what a model is in `manifest`; how bytes are shared in `objects`.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from kvant.errors import ModelNotFoundError, StoreError
from kvant.files import disk_errors, home
from kvant.formats.gguf.kinds import MODEL, PROJECTOR, check_kind
from kvant.formats.gguf.reader import read_gguf
from kvant.hub.disk import Disk, unlink
from kvant.hub.index import fingerprint
from kvant.hub.ledger import Ledger, StoredModel
from kvant.hub.manifest import (
    Layout,
    ModelSettings,
    make_manifest,
)
from kvant.hub.names import ModelName, is_digest
from kvant.hub.pieces import scan
from kvant.progress import SILENT, Progress

if TYPE_CHECKING:
    from kvant.hub.check import Check
    from kvant.hub.collect import Collected

__all__ = ["ModelSettings", "Store", "StoredModel"]


class Store:
    """Models by name.

    Attributes:
        ledger: What is kept under which name.
        disk: Its directories.
        index: Its tables.
        objects: Its objects.
    """

    def __init__(self, disk: Disk) -> None:
        self.ledger = ledger = Ledger(disk)
        self.disk, self.index, self.objects = disk, ledger.index, ledger.objects

    @classmethod
    def open(cls, root: Path | None = None) -> Self:
        """Open the store under a directory, by default `store` in kvant's own; made if absent.

        Raises:
            StoreError: The directory holds something else.
        """
        disk = Disk(root or home() / "store")
        disk.create()
        return cls(disk)

    def list(self) -> Sequence[StoredModel]:
        """Return all models, by name; those whose settings cannot be read are left to `fsck`."""
        self.ledger.refresh()
        found = []
        with self.index.session():
            for row in self.index.rows():
                with contextlib.suppress(StoreError):
                    found.append(self.ledger.model(row))
        return found

    def find(self, name: str | ModelName, *, readable: bool = True) -> StoredModel:
        """Return a model, and see to it that its file can be read.

        Args:
            name: Its name; case does not count. A digest in it must be the model's.
            readable: Put the file together if it is kept in parts.

        Raises:
            ModelNameError: Not a name.
            ModelNotFoundError: No such model, or with another digest.
            StoreError: It is damaged.
            QuotaError: There is no room to put its file together.
        """
        self.ledger.refresh()
        with self.index.session():
            row = self.ledger.row(name)
            model = self.ledger.model(row)
            is_ready = not readable or all(path.exists() for path in self.ledger.paths(row))
        if not is_ready:
            with self.ledger.changing(f"open {row.name}"):
                self.ledger.make_readable(self.ledger.row(name))
        return model

    def has(self, name: str | ModelName) -> bool:
        """Tell whether a model is there, with the digest in the name if it has one."""
        try:
            self.ledger.row(name)
        except ModelNotFoundError:
            return False
        return True

    def import_file(
        self,
        path: Path,
        name: str | ModelName,
        settings: ModelSettings | None = None,
        *,
        progress: Progress = SILENT,
        move: bool = False,
    ) -> StoredModel:
        """Take a GGUF file in under a name, which then means this model; any shard stands for all.

        Args:
            path: The file; it is copied, and hashed as it is copied.
            name: A name without a digest.
            settings: What belongs to it beside the weights; by default only where it is from.
            progress: Told the bytes.
            move: Take the file itself away, without copying where it is on the store's file system.

        Raises:
            FormatError: It is not a GGUF file, or damaged.
            ModelNameError: The name has a digest, or differs only in case from another.
            QuotaError: The store would grow beyond its quota.
        """
        name = self.ledger.checked_name(name)
        settings = ModelSettings(source=_as_text(path)) if settings is None else settings
        model = read_gguf(path)
        check_kind(model, (MODEL, PROJECTOR))
        files = model.files
        task = f"Importing {path.name}"
        progress.start(task, sum(file.stat().st_size for file in files), "B")
        with contextlib.ExitStack() as stack:
            scanned = [
                _take(file, stack.enter_context(self.disk.temporary()), lambda n: progress.advance(task, n), move=move)
                for file in files
            ]
            config = msgspec.json.encode(settings, order="sorted")
            with self.ledger.changing(f"import {name}"):
                manifest = make_manifest(
                    [(layout, titles) for layout, titles, _ in scanned], self.ledger.config(config)
                )
                going = self.ledger.going(name, [layout for layout, _, _ in scanned])
                for layout, _, partial in scanned:
                    self.ledger.keep(layout, partial, going)
                found = self.ledger.set_name(name, manifest)
        progress.finish(task)
        if move:
            for file in files:
                file.unlink(missing_ok=True)
        return found

    def set(self, name: str | ModelName, settings: ModelSettings, *, base: StoredModel) -> StoredModel:
        """Give a name the weights of a model and settings of its own.

        Raises:
            ModelNotFoundError: The model is gone meanwhile.
        """
        name = self.ledger.checked_name(name)
        with self.ledger.changing(f"set {name}"):
            row = self.ledger.row(base.name.undigested)
            if row.manifest != base.digest:
                raise ModelNotFoundError(f"{base.name}: changed meanwhile. Try again.")
            config = self.ledger.config(msgspec.json.encode(settings, order="sorted"))
            return self.ledger.set_name(
                name, msgspec.structs.replace(self.objects.manifest(row.manifest), config=config)
            )

    def copy(self, source: str | ModelName, target: str | ModelName) -> StoredModel:
        """Give a model a second name; no weights are copied.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        target = self.ledger.checked_name(target)
        with self.ledger.changing(f"copy {source} {target}"):
            return self.ledger.set_name(target, self.objects.manifest(self.ledger.row(source).manifest))

    def remove(self, name: str | ModelName) -> StoredModel:
        """Remove a name, and the bytes that no other model needs.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        with self.ledger.changing(f"remove {name}"):
            row = self.ledger.row(name)
            model, layouts = self.ledger.model(row), self.objects.layouts(row.manifest)
            self.objects.rescue(self.ledger.going(model.name, []), layouts)
            unlink(self.ledger.reference(model.name), self.disk.names)
            if not self.index.drop(row.key, fingerprint(self.disk.names)):
                self.ledger.rebuild()
            self.ledger.retire(row, layouts)
            return model

    def export(
        self, names: Sequence[str | ModelName], file: Path, progress: Progress = SILENT, *, overwrite: bool = False
    ) -> None:
        """Write models and all they need to one file that `import_bundle` reads; see `bundle.export`."""
        from kvant.hub.bundle import export

        export(self.ledger, names, file, progress, overwrite=overwrite)

    def import_bundle(
        self, file: Path, progress: Progress = SILENT, *, name: str | None = None, overwrite: bool = False
    ) -> Sequence[StoredModel]:
        """Take in what `export` wrote; see `bundle.import_bundle`."""
        from kvant.hub.bundle import import_bundle

        return import_bundle(self.ledger, file, progress, name=name, overwrite=overwrite)

    def fsck(self, repair: bool = False, progress: Progress = SILENT) -> "Check":
        """Hash everything, and repair what can be repaired; see `check.fsck`."""
        from kvant.hub.check import fsck

        return fsck(self.ledger, repair=repair, progress=progress)

    def gc(self, *, pack: bool = False) -> "Collected":
        """Remove what no name needs; see `collect.gc`."""
        from kvant.hub.collect import gc

        return gc(self.ledger, pack=pack)

    def file(self, sha256: str) -> Path | None:
        """Return the object of that digest if it is a file of its own: a whole GGUF file, say."""
        path = self.disk.blob(sha256)
        return path if is_digest(sha256) and path.exists() else None

    def checked_name(self, name: str | ModelName) -> ModelName:
        """Return a name that can be given to a model; see `Ledger.checked_name`."""
        return self.ledger.checked_name(name)

    @property
    def quota(self) -> int | None:
        """Most bytes that the store may hold; None: no limit of its own."""
        return self.ledger.quota

    @quota.setter
    def quota(self, n_bytes: int | None) -> None:
        self.ledger.quota = n_bytes

    def usage(self) -> int:
        """Return the bytes that all objects take."""
        return self.ledger.usage()


def _as_text(path: Path) -> str:
    """Return a path as text that every system can read; bytes that are none are question marks."""
    return str(path).encode(errors="replace").decode()


def _take(
    source: Path, partial: Path, on_bytes: Callable[[int], object], *, move: bool
) -> tuple[Layout, list[str], Path]:
    """Hash a file and copy it; a file to be moved is not copied where renaming it will do."""
    if move and source.stat().st_dev == partial.parent.stat().st_dev and not source.is_symlink():
        return *scan(source, None, on_bytes), source
    with disk_errors(partial), partial.open("wb") as copy:
        return *scan(source, copy, on_bytes), partial
