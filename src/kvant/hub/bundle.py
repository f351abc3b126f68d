"""One file with models and all they need, for machines without a network: a tar of an OCI image layout.

It holds `oci-layout`, `index.json`, then manifests, configurations and objects, so that it can be read as a stream and
nothing is taken that was not announced. Objects that models share are in it once. Other tools read it as well.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import FormatError, ModelNameError, OutputExistsError, StoreError
from kvant.files import CHUNK_BYTES, atomic_write, disk_errors
from kvant.hub.disk import LAYOUT
from kvant.hub.ledger import Ledger, StoredModel
from kvant.hub.manifest import (
    MANIFEST_TYPE,
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Layout,
    Manifest,
    file_layouts,
    read_manifest,
    read_settings,
)
from kvant.hub.names import ModelName
from kvant.hub.pieces import read_range, scan
from kvant.hub.tar import Entry, entries
from kvant.progress import SILENT, Progress

REFERENCE = "org.opencontainers.image.ref.name"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MAX_INDEX_BYTES = 1 << 22
MAX_MODELS = 1 << 12
_BLOBS = "blobs/sha256/"


class ImageIndex(msgspec.Struct, kw_only=True, rename="camel"):
    """`index.json`: the models of a bundle."""

    schema_version: int = 2
    media_type: str = INDEX_TYPE
    manifests: list[Descriptor]


def is_bundle(path: Path) -> bool:
    """Tell whether a file may be a bundle, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    return head[257:262] == b"ustar"


def export(
    ledger: Ledger,
    names: Sequence[str | ModelName],
    path: Path,
    progress: Progress = SILENT,
    *,
    overwrite: bool = False,
) -> None:
    """Write models to one file; every object is checked as it is written.

    Raises:
        ModelNotFoundError: There is no such model.
        OutputExistsError: The file exists, and `overwrite` is false.
        StoreError: An object is missing or damaged.
    """
    with ledger.disk.still(f"export {path.name}"):  # nothing goes away meanwhile
        rows = {row.name: row for row in (ledger.row(name) for name in names)}
        manifests = {row.manifest: ledger.objects.manifest(row.manifest) for row in rows.values()}
        sizes = {digest: ledger.disk.blob(digest).stat().st_size for digest in manifests}
        index = ImageIndex(
            manifests=[
                Descriptor(
                    media_type=MANIFEST_TYPE, digest=f"sha256:{row.manifest}", size=sizes[row.manifest],
                    annotations={REFERENCE: name},
                )
                for name, row in rows.items()
            ]
        )  # fmt: skip
        configs = {m.config.digest.removeprefix("sha256:"): m.config.size for m in manifests.values()}
        objects = {layer.digest.removeprefix("sha256:"): layer.size for m in manifests.values() for layer in m.layers}
        task = f"Exporting {path.name}"
        progress.start(task, sum(objects.values()), "B")
        with (
            atomic_write(path, overwrite=overwrite) as out,
            tarfile.TarFile(fileobj=out, mode="w", copybufsize=CHUNK_BYTES) as tar,
        ):
            _add(tar, "oci-layout", len(LAYOUT), [LAYOUT])
            raw = msgspec.json.encode(index)
            _add(tar, "index.json", len(raw), [raw])
            for digest, size in itertools.chain(sizes.items(), configs.items(), objects.items()):
                if size or digest in objects:
                    _add(tar, _BLOBS + digest, size, _checked(ledger, digest, size))
                progress.advance(task, size if digest in objects else 0)
        progress.finish(task)


def _checked(ledger: Ledger, digest: str, size: int) -> Iterator[bytes]:
    """Give an object's bytes, and refuse to end if they are not the object's."""
    found = hashlib.sha256()
    for chunk in read_range(*ledger.objects.place(digest), size):
        found.update(chunk)
        yield chunk
    if found.hexdigest() != digest:
        raise StoreError(f"{digest}: the object is damaged. Run: kvant fsck --repair")


class _Chunks(io.RawIOBase):
    """Chunks as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        while size < 0 or sum(map(len, parts)) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
        whole = b"".join(parts)
        end = len(whole) if size < 0 else size
        self._rest = whole[end:]
        return whole[:end]


def _add(tar: tarfile.TarFile, name: str, size: int, chunks: Sequence[bytes] | Iterator[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    rest = iter(chunks)
    tar.addfile(info, _Chunks(rest))
    for _ in rest:  # so that the check after the last chunk is reached
        raise StoreError(f"{name}: is longer than its size. Run: kvant fsck --repair")


def import_bundle(
    ledger: Ledger, path: Path, progress: Progress = SILENT, *, name: str | None = None, overwrite: bool = False
) -> list[StoredModel]:
    """Take the models of a bundle in; they appear when every byte of all of them has been checked.

    Args:
        ledger: The store's.
        path: The bundle.
        progress: Told the bytes.
        name: What to call its only model, instead of the name it has there.
        overwrite: Let names mean the bundle's models that mean others here.

    Raises:
        FormatError: It is not a bundle, is damaged, or holds more or less than it announces.
        OutputExistsError: A name means another model here, and `overwrite` is false.
        QuotaError: The store would grow beyond its quota.
    """
    task = f"Importing {path.name}"
    progress.start(task, path.stat().st_size, "B")
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        reader = _Reader(ledger, file, name, lambda n: progress.advance(task, n), overwrite=overwrite)
        partials = reader.read(stack)
        with ledger.changing(f"import {path.name}"):
            found = [_admit(ledger, reader, model, digest, partials) for model, digest in reader.names.items()]
    progress.finish(task)
    return found


def _admit(ledger: Ledger, reader: "_Reader", name: ModelName, digest: str, partials: dict[str, Path]) -> StoredModel:
    """Give a name what was read for it."""
    manifest = reader.manifests[digest]
    ledger.config(reader.configs[manifest.config.digest.removeprefix("sha256:")])
    for layout in file_layouts(manifest):
        if layout.sha256 in partials:
            ledger.keep_file(name, layout, partials[layout.sha256])
    return ledger.set_name(name, manifest)


class _Reader:
    """Reads a bundle once, from its first byte to its last.

    Attributes:
        names: The manifest's digest of every model.
        manifests: By digest.
        configs: Their bytes, by digest.
    """

    def __init__(
        self, ledger: Ledger, file: BinaryIO, name: str | None, on_bytes: Callable[[int], object], *, overwrite: bool
    ) -> None:
        self._ledger, self._name, self._on_bytes, self._overwrite = ledger, name, on_bytes, overwrite
        self._entries = entries(file)
        self.names: dict[ModelName, str] = {}
        self.manifests: dict[str, Manifest] = {}
        self.configs: dict[str, bytes] = {}

    def read(self, stack: contextlib.ExitStack) -> dict[str, Path]:
        """Read all; return the whole files, put together under temporary names that live as long as `stack`."""
        if self._next("oci-layout").read(200).strip() != LAYOUT:
            raise FormatError("bundle: its oci-layout is not version 1.0.0. Make it with kvant export.")
        index = self._index(self._next("index.json").read(MAX_INDEX_BYTES))
        for digest, size in {d.digest.removeprefix("sha256:"): d.size for d in index.manifests}.items():
            raw = self._document(digest, size, MAX_MANIFEST_BYTES)
            self.manifests[digest] = read_manifest(raw, f"manifest {digest[:12]}")
        configs = {m.config.digest.removeprefix("sha256:"): m.config.size for m in self.manifests.values()}
        for digest, size in configs.items():
            self.configs[digest] = self._document(digest, size, MAX_CONFIG_BYTES)
            read_settings(self.configs[digest], f"settings {digest[:12]}")
        return self._files(stack)

    def _index(self, raw: bytes) -> ImageIndex:
        """Read which models there are, and check their names against the store's before anything else is read."""
        try:
            index = msgspec.json.decode(raw, type=ImageIndex)
        except JSON_ERRORS as error:
            raise FormatError(f"index.json: is not an index of models: {error}. Copy the bundle again.") from error
        if not 1 <= len(index.manifests) <= MAX_MODELS:
            raise FormatError(f"index.json: {len(index.manifests)} models are not 1 to {MAX_MODELS}. Export fewer.")
        if self._name is not None and len(index.manifests) > 1:
            raise ModelNameError(f"{self._name}: the bundle holds {len(index.manifests)} models. Leave the name out.")
        for descriptor in index.manifests:
            text = self._name or descriptor.annotations.get(REFERENCE, "")
            name = self._ledger.checked_name(text)
            digest = ModelName(model="m", digest=descriptor.digest.removeprefix("sha256:")).digest
            rows = self._ledger.index.rows(name.key)
            if rows and rows[0].manifest != digest and not self._overwrite:
                raise OutputExistsError(f"{name}: is another model in the store. Give another name or --overwrite.")
            if name.key in {other.key for other in self.names}:
                raise FormatError(f"{name}: is in the bundle twice. Make it with kvant export.")
            self.names[name] = str(digest)
        return index

    def _files(self, stack: contextlib.ExitStack) -> dict[str, Path]:
        """Write every object where it belongs in the whole files."""
        layouts = {
            layout.sha256: layout for manifest in self.manifests.values() for layout in file_layouts(manifest)
        }  # fmt: skip
        self._check_space(list(layouts.values()))
        partials = {sha256: stack.enter_context(self._ledger.disk.temporary()) for sha256 in layouts}
        wanted: dict[str, list[tuple[Path, int]]] = {}
        sizes: dict[str, int] = {}
        for sha256, layout in layouts.items():
            partials[sha256].touch()
            for piece in layout.pieces:
                wanted.setdefault(piece.digest, []).append((partials[sha256], piece.offset))
                if sizes.setdefault(piece.digest, piece.size) != piece.size:
                    raise FormatError(f"{piece.digest}: has two sizes in the bundle. Make it with kvant export.")
        while wanted:
            entry = next(self._entries, None)
            digest = entry.name.removeprefix(_BLOBS) if entry is not None else ""
            if entry is None or digest not in wanted or entry.size != sizes[digest]:
                what = "its end" if entry is None else entry.name
                raise FormatError(f"bundle: {what} comes where an object belongs. Copy it again.")
            self._scatter(entry, digest, wanted.pop(digest))
        if (extra := next(self._entries, None)) is not None:
            raise FormatError(f"{extra.name}: was not announced by the bundle. Make it with kvant export.")
        for sha256, layout in layouts.items():
            _check_whole(partials[sha256], layout)
        return partials

    def _check_space(self, layouts: Sequence[Layout]) -> None:
        needed = sum(layout.size for layout in layouts)
        free = shutil.disk_usage(self._ledger.disk.root).free
        if needed > free:
            raise FormatError(f"bundle: its files of {needed} bytes do not fit the {free} that are free. Free some.")

    def _scatter(self, entry: Entry, digest: str, targets: list[tuple[Path, int]]) -> None:
        """Write an object to every place it has."""
        found = hashlib.sha256()
        with contextlib.ExitStack() as stack:
            files = []
            for path, offset in targets:
                file = stack.enter_context(path.open("r+b"))
                file.seek(offset)
                files.append(file)
            stack.enter_context(disk_errors(self._ledger.disk.root))
            for chunk in entry.chunks():
                found.update(chunk)
                for file in files:
                    file.write(chunk)
                self._on_bytes(len(chunk))
        if found.hexdigest() != digest:
            raise FormatError(f"{entry.name}: its bytes are not what its name says. Copy the bundle again.")

    def _document(self, digest: str, size: int, limit: int) -> bytes:
        raw = self._next(_BLOBS + digest).read(min(size, limit))
        if len(raw) != size or hashlib.sha256(raw).hexdigest() != digest:
            raise FormatError(f"{digest}: its bytes are not what its name says. Copy the bundle again.")
        return raw

    def _next(self, name: str) -> Entry:
        entry = next(self._entries, None)
        if entry is None or entry.name != name:
            found = "nothing" if entry is None else entry.name
            raise FormatError(f"bundle: {found} comes where {name} belongs. Make it with kvant export.")
        return entry


def _check_whole(partial: Path, layout: Layout) -> None:
    """Check that a file put together is the one it should be, and a GGUF file."""
    os.truncate(partial, layout.size)  # zeros at the end were not written
    whole, _ = scan(partial, None, lambda _: None)
    if whole.sha256 != layout.sha256 or whole.pieces != layout.pieces:
        raise FormatError(f"{layout.sha256}: the objects of the bundle do not make this file. Copy the bundle again.")
