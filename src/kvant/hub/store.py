"""The local store of models: content-addressed, shared between processes, safe against power cuts.

What lies where is told in `disk`; what a model is in `manifest`; how bytes are shared in `objects`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import KvantError, ModelNameError, ModelNotFoundError, QuotaError, StoreError, StoreReadOnlyError
from kvant.files import disk_errors, home
from kvant.formats.gguf.kinds import MODEL, PROJECTOR, check_kind
from kvant.formats.gguf.reader import read_gguf
from kvant.hub.collect import garbage
from kvant.hub.disk import Disk, link, unlink
from kvant.hub.index import Index, Row, fingerprint
from kvant.hub.manifest import (
    CONFIG_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    Layout,
    Manifest,
    ModelSettings,
    encode,
    file_layouts,
    make_manifest,
    read_settings,
)
from kvant.hub.names import ModelName, is_digest
from kvant.hub.objects import SHARE, Objects
from kvant.hub.pieces import join, scan
from kvant.progress import SILENT, Progress

if TYPE_CHECKING:
    from kvant.hub.check import Check
    from kvant.hub.collect import Collected

__all__ = ["ModelSettings", "Store", "StoredModel"]

Paths = list[Path]
Layouts = list[Layout]
Digests = set[str]
Broken = list[tuple[Path, str]]

_CREATED = "org.opencontainers.image.created"
_MAX_REFERENCE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model in the store.

    Attributes:
        name: Its name.
        digest: SHA-256 of its manifest, 64 hexadecimal digits: the same for the same bytes and settings.
        path: Its readable GGUF file, the first one of a sharded model. `list` does not make it; `find` does.
        size_bytes: Of its files together.
        modified_at: When the name was last set, in UTC.
        settings: What belongs to it beside the weights.
    """

    name: ModelName
    digest: str
    path: Path
    size_bytes: int
    modified_at: datetime
    settings: ModelSettings


class Options(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a person set for a store."""

    quota_bytes: int | None = None


class Store:
    """Models by name.

    Attributes:
        disk: Its directories.
        index: Its tables.
        objects: Its objects.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk, self.index = disk, Index(disk.index)
        self.objects = Objects(disk, self.index)
        self._here = threading.local()

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
        self.refresh()
        found = []
        with self.index.session():
            for row in self.index.rows():
                with contextlib.suppress(StoreError):
                    found.append(self.model(row))
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
        self.refresh()
        with self.index.session():
            row = self.row(name)
            model = self.model(row)
            is_ready = not readable or all(path.exists() for path in self.paths(row))
        if not is_ready:
            with self.changing(f"open {row.name}"):
                self._make_readable(self.row(name))
        return model

    def has(self, name: str | ModelName) -> bool:
        """Tell whether a model is there, with the digest in the name if it has one."""
        try:
            self.row(name)
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
        name = self.checked_name(name)
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
            with self.changing(f"import {name}"):
                manifest = make_manifest([(layout, titles) for layout, titles, _ in scanned], self.config(config))
                going = self._going(name, [layout for layout, _, _ in scanned])
                for layout, _, partial in scanned:
                    self._keep(layout, partial, going)
                found = self.set_name(name, manifest)
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
        name = self.checked_name(name)
        with self.changing(f"set {name}"):
            row = self.row(base.name.undigested)
            if row.manifest != base.digest:
                raise ModelNotFoundError(f"{base.name}: changed meanwhile. Try again.")
            config = self.config(msgspec.json.encode(settings, order="sorted"))
            return self.set_name(name, msgspec.structs.replace(self.objects.manifest(row.manifest), config=config))

    def copy(self, source: str | ModelName, target: str | ModelName) -> StoredModel:
        """Give a model a second name; no weights are copied.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        target = self.checked_name(target)
        with self.changing(f"copy {source} {target}"):
            return self.set_name(target, self.objects.manifest(self.row(source).manifest))

    def remove(self, name: str | ModelName) -> StoredModel:
        """Remove a name, and the bytes that no other model needs.

        Raises:
            ModelNotFoundError: There is no such model.
        """
        with self.changing(f"remove {name}"):
            row = self.row(name)
            model, layouts = self.model(row), self.objects.layouts(row.manifest)
            self.objects.rescue(self._going(model.name, []), layouts)
            unlink(self._reference(model.name), self.disk.names)
            if not self.index.drop(row.key, fingerprint(self.disk.names)):
                self.rebuild()
            self._retire(row, layouts)
            return model

    def export(
        self, names: Sequence[str | ModelName], file: Path, progress: Progress = SILENT, *, overwrite: bool = False
    ) -> None:
        """Write models and all they need to one file that `import_bundle` reads; see `bundle.export`."""
        from kvant.hub.bundle import export

        export(self, names, file, progress, overwrite=overwrite)

    def import_bundle(
        self, file: Path, progress: Progress = SILENT, *, name: str | None = None, overwrite: bool = False
    ) -> Sequence[StoredModel]:
        """Take in what `export` wrote; see `bundle.import_bundle`."""
        from kvant.hub.bundle import import_bundle

        return import_bundle(self, file, progress, name=name, overwrite=overwrite)

    def fsck(self, repair: bool = False, progress: Progress = SILENT) -> "Check":
        """Hash everything, and repair what can be repaired; see `check.fsck`."""
        from kvant.hub.check import fsck

        return fsck(self, repair=repair, progress=progress)

    def gc(self, *, pack: bool = False) -> "Collected":
        """Remove what no name needs; see `collect.gc`."""
        from kvant.hub.collect import gc

        return gc(self, pack=pack)

    def file(self, sha256: str) -> Path | None:
        """Return the object of that digest if it is a file of its own: a whole GGUF file, say."""
        path = self.disk.blob(sha256)
        return path if is_digest(sha256) and path.exists() else None

    @property
    def quota(self) -> int | None:
        """Most bytes that the store may hold; None: no limit of its own."""
        path = self.disk.root / "options.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Options).quota_bytes
        except FileNotFoundError:
            return None
        except JSON_ERRORS as error:
            raise StoreError(f"{path}: cannot be read: {error}. Remove it, and set the quota again.") from error

    @quota.setter
    def quota(self, n_bytes: int | None) -> None:
        self.disk.write(self.disk.root / "options.json", msgspec.json.encode(Options(quota_bytes=n_bytes)))

    def usage(self) -> int:
        """Return the bytes that all objects take."""
        return self.disk.usage()

    # What the other modules of the store build on; the lock is held where something is changed.

    @contextlib.contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """Hold the lock and the journal; a change that was cut off before is put right first, one that fails undone.

        Args:
            what: What is changed, for those who wait, and for the journal.

        Raises:
            StoreReadOnlyError: Nothing can be written here.
        """
        assert not getattr(self._here, "changing", False), "a change cannot be part of another"
        with self.disk.locked(what), self.disk.writing(), self._marked():
            if self.disk.journal.exists():
                self.recover()
            self.refresh()
            self.disk.note(what)
            with self.index.session():
                try:
                    yield
                except Exception:
                    with contextlib.suppress(OSError):  # what cannot be undone now is by the next change
                        self._undo()
                    raise
            self.disk.journal.unlink()

    @contextlib.contextmanager
    def _marked(self) -> Iterator[None]:
        """Remember while the block runs that this thread changes the store."""
        self._here.changing = True
        try:
            yield
        finally:
            self._here.changing = False

    def _undo(self) -> None:
        """After a change that failed: remove what it left, unless some name's needs are not known."""
        if not self.rebuild():
            for digest in garbage(self):
                self.disk.blob(digest).unlink()
            self.relink()
            self.disk.journal.unlink()

    def recover(self) -> None:
        """After a crash: sweep what is incomplete, make the index again and the readable files agree with it."""
        self.disk.sweep()
        self.rebuild()
        self.relink()
        self.disk.journal.unlink(missing_ok=True)

    def refresh(self) -> None:
        """Make the index again if names changed without it."""
        if self.index.mark() == fingerprint(self.disk.names):
            return
        try:
            with self.disk.locked("make the index again"):
                if self.index.mark() != fingerprint(self.disk.names):
                    self.rebuild()
        except StoreReadOnlyError:
            self.index.detach()
            self.rebuild()

    def rebuild(self) -> Broken:
        """Make the index again; return the references that cannot be read, and why."""
        mark = fingerprint(self.disk.names)
        found, broken = [], []
        for path in sorted(self.disk.names.rglob("*.json")):
            try:
                found.append(self._read_reference(path))
            except (KvantError, OSError) as error:
                broken.append((path, str(error)))
        self.index.replace(found, mark)
        return broken

    def relink(self) -> Paths:
        """Make readable files agree with the names; return those that were wrong."""
        wrong, right = [], set()
        for row in self.index.rows():
            for (file, _), path in zip(self.index.files(row.manifest), self.paths(row), strict=True):
                target = self.disk.blob(file)
                if target.exists():
                    right.add(path)
                    if not path.exists() or not path.samefile(target):
                        wrong.append(path)
                        link(target, path, self.disk.root)
        for path in sorted(self.disk.models.rglob("*")):
            if (path.is_symlink() or path.is_file()) and path not in right:
                wrong.append(path)
                unlink(path, self.disk.models)
        return wrong

    def row(self, name: str | ModelName) -> Row:
        """Return a name's row.

        Raises:
            ModelNotFoundError: There is none, or it has another digest.
            StoreError: There is one, but it cannot be read.
        """
        name = ModelName.parse(name) if isinstance(name, str) else name
        self.refresh()
        rows = self.index.rows(name.key)
        if not rows and self._reference(name).exists():
            raise StoreError(f"{name}: is damaged. Run: kvant fsck")
        if not rows:
            raise ModelNotFoundError(f"{name}: is not in the store. `kvant list` shows what is.")
        if name.digest not in (None, rows[0].manifest):
            raise ModelNotFoundError(
                f"{name.undigested}: has the digest sha256:{rows[0].manifest}, not sha256:{name.digest}. Pull it again."
            )
        return rows[0]

    def model(self, row: Row) -> StoredModel:
        """Return the model of a row."""
        path = self.disk.blob(row.config)
        try:
            settings = read_settings(path.read_bytes(), str(path))
        except OSError as error:
            raise StoreError(f"{row.name}: its settings cannot be read: {error.strerror}. Run: kvant fsck") from error
        return StoredModel(
            name=ModelName.parse(row.name), digest=row.manifest, path=self.paths(row)[0], size_bytes=row.size,
            modified_at=row.modified, settings=settings,
        )  # fmt: skip

    def paths(self, row: Row) -> Paths:
        """Return the readable files of a row, whether there or not."""
        name = ModelName.parse(row.name)
        directory, n = self.disk.models / name.readable, len(self.index.files(row.manifest))
        if n == 1:
            return [directory / f"{name.tag}.gguf"]
        return [directory / f"{name.tag}-{number:05d}-of-{n:05d}.gguf" for number in range(1, n + 1)]

    def checked_name(self, name: str | ModelName) -> ModelName:
        """Return a name that can be given to a model.

        Raises:
            ModelNameError: It has a digest, or differs only in case from one that is there.
        """
        name = ModelName.parse(name) if isinstance(name, str) else name
        if name.digest is not None:
            raise ModelNameError(f"{name}: a new name cannot say its digest. Leave the digest out.")
        self.refresh()
        for row in self.index.rows(name.key):
            if row.name != name.full:
                raise ModelNameError(f"{name}: differs only in case from {ModelName.parse(row.name)}. Use that name.")
        return name

    def set_name(self, name: ModelName, manifest: Manifest) -> StoredModel:
        """Let a name mean a manifest whose objects are all here; what it meant before goes if nothing else needs it."""
        self.checked_name(name)
        layouts = list(file_layouts(manifest))
        old = next(iter(self.index.rows(name.key)), None)
        old_layouts = self.objects.layouts(old.manifest) if old else []
        needed = {piece.digest for layout in layouts for piece in layout.pieces}
        self.objects.rescue(self._going(name, layouts), old_layouts, needed)
        raw = encode(manifest)
        digest = self.disk.put(raw)
        now = datetime.now(UTC)
        reference = Descriptor(
            media_type=MANIFEST_TYPE, digest=f"sha256:{digest}", size=len(raw), annotations={_CREATED: now.isoformat()}
        )
        self.disk.write(self._reference(name), msgspec.json.encode(reference))
        row = Row(
            key=name.key, name=name.full, manifest=digest, config=manifest.config.digest.removeprefix("sha256:"),
            size=sum(layout.size for layout in layouts), modified=now,
        )  # fmt: skip
        if not self.index.put(row, layouts, fingerprint(self.disk.names)):
            self.rebuild()
        if old is not None and old.manifest != digest:
            self._retire(old, old_layouts)
        self._link(row)
        return self.model(row)

    def check_room(self, n_bytes: int, what: str) -> None:
        """Refuse to grow beyond the quota.

        Raises:
            QuotaError: It would.
        """
        quota = self.quota
        used = 0 if quota is None else self.usage()
        if quota is not None and used + n_bytes > quota:
            raise QuotaError(
                f"{what}: {n_bytes} bytes more than the {used} in the store are above its quota of {quota}. "
                "Remove models (kvant rm), run kvant gc --pack, or raise the quota (kvant gc --quota SIZE)."
            )

    def check_possible(self, n_bytes: int, what: str) -> None:
        """Refuse what could never fit the quota, before it is fetched.

        Raises:
            QuotaError: It is larger than the quota.
        """
        quota = self.quota
        if quota is not None and n_bytes > quota:
            raise QuotaError(
                f"{what}: {n_bytes} bytes are above the store's quota of {quota}. "
                "Choose a smaller variant, or raise the quota (kvant gc --quota SIZE)."
            )

    def keep_parts(self, layout: Layout, going: Digests) -> bool:
        """Tell whether a file is kept in parts because others hold enough of it."""
        return self.objects.shared(layout, without=going) >= SHARE * layout.size

    def keep_file(self, name: ModelName, layout: Layout, partial: Path) -> None:
        """Take a checked file in that `name` is going to mean."""
        self._keep(layout, partial, self._going(name, [layout]))

    def _keep(self, layout: Layout, partial: Path, going: Digests) -> None:
        """Take a scanned file in, whole or in parts; of the files `going` nothing is used."""
        if self.disk.blob(layout.sha256).exists():
            return
        if self.keep_parts(layout, going):
            self.check_room(layout.size - self.objects.shared(layout, without=going), layout.sha256[:12])
            new = [p for p in layout.pieces if self.objects.locate(p.digest, without=going) is None]
            self.objects.extract((piece, (partial, piece.offset)) for piece in new)
            return
        self.check_room(layout.size, layout.sha256[:12])
        self.disk.keep(partial, layout.sha256)

    def config(self, raw: bytes) -> Descriptor:
        """Keep a configuration and describe it."""
        return Descriptor(media_type=CONFIG_TYPE, digest=f"sha256:{self.disk.put(raw)}", size=len(raw))

    def _going(self, name: ModelName, layouts: Layouts) -> Digests:
        """Return the whole files that go when `name` means `layouts`."""
        kept = {layout.sha256 for layout in layouts}
        rows = self.index.rows(name.key)
        files = {file for row in rows for file, _ in self.index.files(row.manifest)}
        return {file for file in files - kept if self.index.users(file) <= 1}

    def _retire(self, row: Row, layouts: Layouts) -> None:
        """Remove what a row had that no row has any more; it is out of the index already."""
        for path in self._all_paths(row, len(layouts)):
            unlink(path, self.disk.models)
        rows = self.index.rows()
        used = {digest for other in rows for digest in (other.manifest, other.config)}
        for digest in {row.manifest, row.config} - used:
            self.disk.blob(digest).unlink(missing_ok=True)
        self.objects.drop_unused(layouts)

    def _all_paths(self, row: Row, n: int) -> Paths:
        name = ModelName.parse(row.name)
        directory = self.disk.models / name.readable
        shards = [directory / f"{name.tag}-{number:05d}-of-{n:05d}.gguf" for number in range(1, n + 1)]
        return [directory / f"{name.tag}.gguf"] if n == 1 else shards

    def _link(self, row: Row) -> None:
        """Link the files of a row that are there for every name that has them."""
        files = {file for file, _ in self.index.files(row.manifest) if self.disk.blob(file).exists()}
        for other in self.index.rows():
            for (file, _), path in zip(self.index.files(other.manifest), self.paths(other), strict=True):
                if file in files:
                    link(self.disk.blob(file), path, self.disk.root)

    def _make_readable(self, row: Row) -> None:
        """Put the files of a model together that are kept in parts."""
        layouts = self.objects.layouts(row.manifest)
        for layout in layouts:
            if self.disk.blob(layout.sha256).exists():
                continue
            self.check_room(layout.size, row.name)
            with self.disk.temporary() as partial:
                join(layout, self.objects.place, partial)
                self.disk.keep(partial, layout.sha256)
        self._link(row)
        self.objects.drop_unused(layouts)

    def _reference(self, name: ModelName) -> Path:
        return self.disk.names / name.directory / f"{name.tag}.json"

    def _read_reference(self, path: Path) -> tuple[Row, Layouts]:
        """Read what a name means from the file that says it.

        Raises:
            KvantError: It is no reference, is not where its name belongs, or its manifest is broken.
        """
        parts = path.relative_to(self.disk.names).parts
        if len(parts) != 4:
            raise StoreError(f"{path}: is {len(parts)} parts deep, not 4. Remove it.")
        host, namespace, model, tag = parts
        name = ModelName(host=host.replace("+", ":"), namespace=namespace, model=model, tag=tag.removesuffix(".json"))
        with path.open("rb") as file:
            raw = file.read(_MAX_REFERENCE_BYTES)
        try:
            reference = msgspec.json.decode(raw, type=Descriptor)
            modified = datetime.fromisoformat(reference.annotations[_CREATED])
        except (*JSON_ERRORS, KeyError, ValueError) as error:
            raise StoreError(f"{path}: is not a reference: {error}. Import or pull the model again.") from error
        digest = ModelName(model="m", digest=reference.digest.removeprefix("sha256:")).digest
        manifest = self.objects.manifest(str(digest))
        layouts = list(file_layouts(manifest))
        config = manifest.config.digest.removeprefix("sha256:")
        size = sum(layout.size for layout in layouts)
        return Row(name.key, name.full, str(digest), config, size, modified), layouts


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
