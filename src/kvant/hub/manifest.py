"""What a model in the store is: an OCI manifest that lists the objects of its files, and a configuration of settings.

A GGUF file is cut into objects: the header, then every tensor in file order. Zeros between two of them are a number
beside the first, so that the same tensor has the same digest wherever it lies. Put together again they are the file,
byte for byte; its SHA-256 is kept too.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import StoreError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.kvant.model.v1+json"
CONFIG_TYPE = "application/vnd.kvant.model.config.v1+json"
HEADER_TYPE = "application/vnd.kvant.gguf.header.v1"
TENSOR_TYPE = "application/vnd.kvant.gguf.tensor.v1"
GAP_TYPE = "application/vnd.kvant.gguf.gap.v1"

TITLE = "org.opencontainers.image.title"
FILES = "dev.kvant.files"
ZEROS = "dev.kvant.zeros"

MAX_MANIFEST_BYTES = 64 << 20  # 300 bytes for each of the most tensors that a file may hold
MAX_CONFIG_BYTES = 32 << 20
MAX_FILES = 1 << 12
MAX_ZEROS = 1 << 20  # GGUF's largest alignment that is read
MAX_BYTES = 1 << 50

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation that a model starts with."""

    role: str
    content: str


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What belongs to a model beside its weights.

    Attributes:
        template: Chat template; None: the file's own.
        system: What the model is told first.
        parameters: Defaults of requests: `temperature`, `stop`, ...
        messages: The conversation so far.
        license: Texts or identifiers.
        source: Where the file is from: `hf:org/name@revision/file`, a path, an address.
        passport: kvant's report of the file: its measured quality, size, speed.
    """

    template: str | None = None
    system: str | None = None
    parameters: dict[str, bool | int | float | str | list[str]] = {}
    messages: list[Message] = []
    license: list[str] = []
    source: str | None = None
    passport: dict[str, Any] | None = None


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An OCI descriptor: what kind, which bytes, how many."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file of a model.

    Attributes:
        sha256: Of all its bytes, 64 hexadecimal digits.
        size: Its bytes.
        layers: How many of the manifest's layers it is made of, in order.
    """

    sha256: str
    size: int
    layers: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=False):
    """An OCI manifest of a model."""

    schema_version: int = 2
    media_type: str = MANIFEST_TYPE
    artifact_type: str = ARTIFACT_TYPE
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Piece:
    """One object in one file.

    Attributes:
        digest: SHA-256 of the object, 64 hexadecimal digits.
        offset: Where it starts in the file.
        size: Its bytes.
        zeros: Bytes of zeros that follow it there.
    """

    digest: str
    offset: int
    size: int
    zeros: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole file and its objects in order."""

    sha256: str
    size: int
    pieces: tuple[Piece, ...]


def encode(manifest: Manifest) -> bytes:
    """Return a manifest's bytes; equal manifests have equal bytes."""
    return msgspec.json.encode(manifest, order="sorted")


def make_manifest(layouts: "list[tuple[Layout, list[str]]]", config: Descriptor) -> Manifest:
    """Describe a model.

    Args:
        layouts: Its files, each with the titles of its pieces: "" the header, a tensor's name, or "gap".
        config: Its configuration.
    """
    layers = [
        _layer(piece, index, title)
        for layout, titles in layouts
        for index, (piece, title) in enumerate(zip(layout.pieces, titles, strict=True))
    ]
    files = [StoredFile(sha256=a.sha256, size=a.size, layers=len(a.pieces)) for a, _ in layouts]
    return Manifest(config=config, layers=layers, annotations={FILES: msgspec.json.encode(files).decode()})


def _layer(piece: Piece, index: int, title: str) -> Descriptor:
    kind = HEADER_TYPE if index == 0 else TENSOR_TYPE if title else GAP_TYPE
    annotations = ({TITLE: title} if title else {}) | ({ZEROS: str(piece.zeros)} if piece.zeros else {})
    return Descriptor(media_type=kind, digest=f"sha256:{piece.digest}", size=piece.size, annotations=annotations)


def read_manifest(raw: bytes, what: str) -> Manifest:
    """Read and check a manifest; `what` names it in messages.

    Raises:
        StoreError: It is too large, not JSON, of another kind, or contradicts itself.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise StoreError(f"{what}: {len(raw)} bytes are above {MAX_MANIFEST_BYTES} of a manifest. Get it again.")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except JSON_ERRORS as error:
        raise StoreError(f"{what}: is not a manifest of a model: {error}. Get it again.") from error
    if manifest.schema_version != 2 or manifest.media_type != MANIFEST_TYPE or manifest.artifact_type != ARTIFACT_TYPE:
        raise StoreError(f"{what}: its type {manifest.artifact_type[:80]!r} is not {ARTIFACT_TYPE}. Get a kvant model.")
    for descriptor in (manifest.config, *manifest.layers):
        if not _DIGEST.fullmatch(descriptor.digest) or not 0 <= descriptor.size <= MAX_BYTES:
            raise StoreError(f"{what}: {descriptor.digest[:80]!r} is not a digest and a size. Get it again.")
    if manifest.config.size > MAX_CONFIG_BYTES:
        raise StoreError(f"{what}: its configuration of {manifest.config.size} bytes is too large. Get it again.")
    list(file_layouts(manifest, what))
    return manifest


def file_layouts(manifest: Manifest, what: str = "manifest") -> Iterator[Layout]:
    """Give the files of a model and their pieces.

    Raises:
        StoreError: The layers do not add up to the files.
    """
    try:
        files = msgspec.json.decode(manifest.annotations.get(FILES, ""), type=list[StoredFile])
    except JSON_ERRORS as error:
        raise StoreError(f"{what}: does not say its files: {error}. Get it again.") from error
    if not 1 <= len(files) <= MAX_FILES or any(f.layers < 1 for f in files):
        raise StoreError(f"{what}: {len(files)} files are not 1 to {MAX_FILES}. Get it again.")
    if sum(f.layers for f in files) != len(manifest.layers):
        raise StoreError(f"{what}: its files do not take all of its {len(manifest.layers)} layers. Get it again.")
    start = 0
    for file in files:
        layout = _layout(file, manifest.layers[start : start + file.layers], what)
        start += file.layers
        yield layout


def _layout(file: StoredFile, layers: list[Descriptor], what: str) -> Layout:
    offset, pieces = 0, []
    for layer in layers:
        text = layer.annotations.get(ZEROS, "0")
        if not re.fullmatch("[0-9]{1,7}", text) or int(text) > MAX_ZEROS:
            raise StoreError(f"{what}: {text[:20]!r} zeros between objects are not 0 to {MAX_ZEROS}. Get it again.")
        pieces.append(Piece(layer.digest.removeprefix("sha256:"), offset, layer.size, int(text)))
        offset += layer.size + int(text)
    if not _DIGEST.fullmatch("sha256:" + file.sha256) or offset != file.size:
        raise StoreError(f"{what}: objects of {offset} bytes are no file of {file.size}. Get it again.")
    return Layout(file.sha256, file.size, tuple(pieces))


def read_settings(raw: bytes, what: str) -> ModelSettings:
    """Read a configuration.

    Raises:
        StoreError: It is not one.
    """
    try:
        return msgspec.json.decode(raw, type=ModelSettings)
    except JSON_ERRORS as error:
        raise StoreError(f"{what}: is not a configuration of a model: {error}. Get it again.") from error
