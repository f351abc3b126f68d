"""The lock of a delivered file: all that decides its bytes, as hashes and settings; `rebuild.py` makes them again.

A JSON document beside the file. Sections for what did not take part are left out, and a section that this version does
not know is refused, so that nothing that decides bytes can be overlooked.
"""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from kvant._version import __version__
from kvant.documents import JSON_ERRORS, read_document
from kvant.errors import FormatError
from kvant.evaluate.base import file_hash
from kvant.files import atomic_write
from kvant.formats.gguf.layout import file_layout
from kvant.kernels.fitting import SWEEPS
from kvant.model import Model
from kvant.quant.curvature import DAMPING, DAMPING_BY_COLUMNS, EMBEDDING_DAMPING
from kvant.quant.importance import Importance
from kvant.quant.plan import Plan
from kvant.recipes.measure.calibration import TOKENS_SUFFIX, Calibration, Way
from kvant.recipes.measure.textname import SELF
from kvant.recipes.output import beside

FORMAT = 1
GGUF = "gguf"
"""The target of locks that name none."""
LOCK_SUFFIX = ".lock.json"
STATISTICS_SUFFIX = ".statistics"
"""Of the directory beside an output that holds what calibration measured, where it is kept."""

MAX_LOCK_BYTES = 64 << 20

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[^/\\\x00]+$", max_length=255)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class LockedSource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The full-precision model.

    Attributes:
        name: Name of its directory or file, which goes into metadata.
        files: SHA-256 of every file by name; of a GGUF by shard number, as its name decides nothing.
        metadata_sha256: Digest of its metadata, which chat templates and the model card are read into as well.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    files: dict[str, Sha256]
    metadata_sha256: Sha256


class LockedCalibration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The text that statistics were measured on, and their digest.

    Attributes:
        text: Name of the file, or of the token file beside the lock; None for kvant's own text.
        text_sha256: Hash of the text.
        windows: Most windows of it.
        seed: Of the labels drawn.
        statistics_sha256: Digest of the statistics' bytes.
        way: What measured them; only gradients give the same bytes on every machine.
    """

    text: FileName | None = None
    text_sha256: Sha256
    windows: Count
    seed: Count
    statistics_sha256: Sha256
    way: Way = "gradients"


class LockedImportance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An importance file.

    Attributes:
        file: Its name.
        sha256: Digest of its content as it is used.
    """

    file: FileName
    sha256: Sha256


class LockedEncoder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Settings of the encoders that minimise the error under a Hessian.

    Attributes:
        damping: Share of the mean diagonal added to a Hessian.
        damping_by_columns: What a Hessian of as many columns as tokens gets on top.
        embedding_damping: Share added to the token embedding's.
        sweeps: Passes of descent.
    """

    damping: float
    damping_by_columns: float
    embedding_damping: float
    sweeps: Count


class LockedPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The block type of every tensor; see `Plan`."""

    preset: str
    file_type: Count
    types: dict[str, str]

    def plan(self) -> Plan:
        """Return the plan as encoders take it."""
        return Plan(preset=self.preset, file_type=self.file_type, types=self.types)


class LockedOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The file, or the directory.

    Attributes:
        file: Its name.
        size_bytes: Its size; of a directory, of all its files.
        sha256: Its hash; of a directory, of the list of its files' hashes.
        files: Of a directory, the hash of every file by its path within.
    """

    file: FileName
    size_bytes: Count
    sha256: Sha256
    files: dict[str, Sha256] = {}


class Lock(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All that decides a file's bytes.

    Attributes:
        format: Version of this document.
        target: Format of the file.
        kvant: Version that made the file, and alone makes it again.
        versions: Of other packages that took part; told where bytes differ, not required.
        source: The full-precision model.
        calibration: What statistics were measured on; None if none were used.
        importance: The importance file; None if none was used.
        provenance: What else decides the bytes, by name: the export of a graph, where there is one.
        encoder: Settings of the encoders under Hessians; None if upstream's encoders were used, which then know the
            importance that calibration measured, if there is any.
        plan: Block types.
        output: The file.
    """

    format: Literal[1]
    target: str = GGUF
    kvant: str
    versions: dict[str, str]
    source: LockedSource
    calibration: LockedCalibration | None = None
    importance: LockedImportance | None = None
    provenance: dict[str, str] = {}
    encoder: LockedEncoder | None = None
    plan: LockedPlan
    output: LockedOutput


class _Head(msgspec.Struct):
    format: int


def make_lock(
    model: Model, plan: Plan, calibration: Calibration | None, importance: Importance | None, output: LockedOutput,
    *, is_fitted: bool, target: str = GGUF, provenance: Mapping[str, str] | None = None,
) -> Lock:  # fmt: skip
    """Write down what decides an output's bytes.

    Args:
        model: The full-precision model.
        plan: Type of every tensor.
        calibration: What was measured of it, if anything.
        importance: From a file, or measured by the calibration.
        output: What was made.
        is_fitted: Whether encoders used the calibration's Hessians; they then used no importance.
        target: Its format.
        provenance: What else decides its bytes, by name.
    """
    from_file = None if is_fitted or importance is None or not importance.source else importance
    measured = None if from_file else calibration
    return Lock(
        format=1,
        target=target,
        kvant=__version__,
        versions=versions(),
        source=locked_source(model),
        calibration=locked_calibration(measured, output) if measured else None,
        importance=LockedImportance(file=from_file.source, sha256=from_file.sha256) if from_file else None,
        provenance=dict(provenance or {}),
        encoder=present_encoder() if is_fitted else None,
        plan=LockedPlan(preset=plan.preset, file_type=plan.file_type, types=plan.types),
        output=output,
    )


def locked_source(model: Model) -> LockedSource:
    """Write down which model it is."""
    if model.path.is_dir():
        files = {file.name: file_hash(file) for file in sorted(model.files)}
    else:
        files = {f"{number}": file_hash(file) for number, file in enumerate(model.files, 1)}
    metadata = hashlib.sha256(file_layout(model.metadata, ()).header).hexdigest()
    return LockedSource(name=model.known_as or model.path.name, files=files, metadata_sha256=metadata)


def locked_calibration(calibration: Calibration, output: LockedOutput) -> LockedCalibration:
    """Write down what was measured."""
    text = calibration.text
    own = token_file(output.file) if is_written_by_model(calibration) else None
    return LockedCalibration(
        text=own or (None if text.split else text.name), text_sha256=text.sha256, windows=calibration.n_windows,
        seed=calibration.seed, statistics_sha256=calibration.sha256, way=calibration.way,
    )  # fmt: skip


def is_written_by_model(calibration: Calibration) -> bool:
    """Whether the model wrote the text, so that only its tokens can give it again."""
    return calibration.text.name == SELF and bool(calibration.text.split)


def token_file(output: str) -> str:
    """Name of the token file beside an output."""
    return beside(Path(output), f".tokens{TOKENS_SUFFIX}").name


def present_encoder() -> LockedEncoder:
    """Return the settings of this version."""
    return LockedEncoder(
        damping=DAMPING, damping_by_columns=DAMPING_BY_COLUMNS, embedding_damping=EMBEDDING_DAMPING, sweeps=SWEEPS
    )


def versions() -> dict[str, str]:
    """Return the versions of packages that take part where they are installed."""
    found = {"numpy": np.__version__}
    for name in ("torch", "xllamacpp"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock; the file appears whole."""
    with atomic_write(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(lock), indent=2) + b"\n")


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        KvantError: It cannot be read.
        FormatError: It is no lock, or one of a format that is not known here.
    """
    data = read_document(path, "lock", MAX_LOCK_BYTES)
    try:
        number = msgspec.json.decode(data, type=_Head).format
        if number != FORMAT:
            raise FormatError(f"{path}: lock format {number} is not {FORMAT}. Use the version of kvant that wrote it.")
        return msgspec.json.decode(data, type=Lock)
    except JSON_ERRORS as error:
        raise FormatError(f"{path}: {error} breaks the lock format. Give the .lock.json beside a file.") from error
