"""What is kept under which name: the part of the store that all its jobs build on.

It reads and changes names, manifests and files under one lock and journal. `bundle`, `check` and `collect` are jobs on
it; `Store` is the face that people meet.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import KvantError, ModelNameError, ModelNotFoundError, QuotaError, StoreError, StoreReadOnlyError
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
    read_settings,
)
from kvant.hub.names import ModelName
from kvant.hub.objects import SHARE, Objects
from kvant.hub.pieces import join

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


class Ledger:
    """Names, and what they need. Where something is changed the lock is held, see `changing`.

    Attributes:
        disk: The store's directories.
        index: Its tables.
        objects: Its objects.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk, self.index = disk, Index(disk.index)
        self.objects = Objects(disk, self.index)
        self._here = threading.local()

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
            for digest in self.garbage():
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
        if not rows and self.reference(name).exists():
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
        return self._paths(row, len(self.index.files(row.manifest)))

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
        self.objects.rescue(self.going(name, layouts), old_layouts, needed)
        raw = encode(manifest)
        digest = self.disk.put(raw)
        now = datetime.now(UTC)
        reference = Descriptor(
            media_type=MANIFEST_TYPE, digest=f"sha256:{digest}", size=len(raw), annotations={_CREATED: now.isoformat()}
        )
        self.disk.write(self.reference(name), msgspec.json.encode(reference))
        row = Row(
            key=name.key, name=name.full, manifest=digest, config=manifest.config.digest.removeprefix("sha256:"),
            size=sum(layout.size for layout in layouts), modified=now,
        )  # fmt: skip
        if not self.index.put(row, layouts, fingerprint(self.disk.names)):
            self.rebuild()
        if old is not None and old.manifest != digest:
            self.retire(old, old_layouts)
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
        self.keep(layout, partial, self.going(name, [layout]))

    def keep(self, layout: Layout, partial: Path, going: Digests) -> None:
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

    def going(self, name: ModelName, layouts: Layouts) -> Digests:
        """Return the whole files that go when `name` means `layouts`."""
        kept = {layout.sha256 for layout in layouts}
        rows = self.index.rows(name.key)
        files = {file for row in rows for file, _ in self.index.files(row.manifest)}
        return {file for file in files - kept if self.index.users(file) <= 1}

    def retire(self, row: Row, layouts: Layouts) -> None:
        """Remove what a row had that no row has any more; it is out of the index already."""
        for path in self._paths(row, len(layouts)):
            unlink(path, self.disk.models)
        rows = self.index.rows()
        used = {digest for other in rows for digest in (other.manifest, other.config)}
        for digest in {row.manifest, row.config} - used:
            self.disk.blob(digest).unlink(missing_ok=True)
        self.objects.drop_unused(layouts)

    def _paths(self, row: Row, n: int) -> Paths:
        """Return the readable files of a row that has, or had, `n`."""
        name = ModelName.parse(row.name)
        directory = self.disk.models / name.readable
        if n == 1:
            return [directory / f"{name.tag}.gguf"]
        return [directory / f"{name.tag}-{number:05d}-of-{n:05d}.gguf" for number in range(1, n + 1)]

    def _link(self, row: Row) -> None:
        """Link the files of a row that are there for every name that has them."""
        files = {file for file, _ in self.index.files(row.manifest) if self.disk.blob(file).exists()}
        for other in self.index.rows():
            for (file, _), path in zip(self.index.files(other.manifest), self.paths(other), strict=True):
                if file in files:
                    link(self.disk.blob(file), path, self.disk.root)

    def make_readable(self, row: Row) -> None:
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

    def reference(self, name: ModelName) -> Path:
        """Return the file that says what a name means."""
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

    def garbage(self) -> list[str]:
        """Return the objects that no name needs, and those of their own that a whole file holds too."""
        rows = self.index.rows()
        kept = {digest for row in rows for digest in (row.manifest, row.config)}
        kept |= {file for row in rows for file, _ in self.index.files(row.manifest)}
        there = {path.name for path in self.disk.blobs.iterdir()}
        places = self.index.all_places()
        return sorted(
            digest
            for digest in there - kept
            if digest not in places or any(file in there and file != digest for file, _ in places[digest])
        )
