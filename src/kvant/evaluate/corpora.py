"""Texts to measure on: the bundled set, in domains and in two halves that share nothing, or any file.

The `held-out` half is for evaluation, the `calibration` half for whatever a quantizer learns from text. A figure
measured on text that a variant was calibrated on flatters it, so `check_unseen` refuses that.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from kvant.errors import FormatError, LimitError, ValueRangeError
from kvant.metadata import Value

SPLITS = ("held-out", "calibration")
MAX_TEXT_BYTES = 64 << 20
PIECE_CHARACTERS = 2000

# Where variants say what they were calibrated on: our own key and upstream's, which holds a file name.
CALIBRATION_HASH_KEY = "kvant.calibration.sha256"
CALIBRATION_NAME_KEY = "quantize.imatrix.dataset"
MLX_NAME_KEY = "kvant.calibration.name"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bundled text as the manifest names it.

    Attributes:
        corpus: Name of the set.
        split: `held-out` or `calibration`.
        domain: `prose`, `code`, `dialogue` or `other-languages`.
        file: Path inside the data directory.
        sha256: Hash of its bytes.
        licence: Under which it may be passed on.
        source: Where it comes from.
    """

    corpus: str
    split: str
    domain: str
    file: str
    sha256: str
    licence: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Text of one domain; `sha256` is that of its UTF-8 bytes."""

    domain: str
    text: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A text in one or more domains.

    Attributes:
        name: Name of the set, or of the file.
        split: `held-out`, `calibration`, or empty for a file.
        text: All of it; domains alternate every `PIECE_CHARACTERS`, so that any beginning is a mixture.
        sha256: Hash of `text` as UTF-8.
        parts: The domains apart.
    """

    name: str
    split: str
    text: str
    sha256: str
    parts: tuple[Part, ...]

    @property
    def label(self) -> str:
        """What to call it in files and tables."""
        return f"kvant:{self.name}:{self.split}" if self.split else self.name


@functools.cache
def manifest() -> tuple[Entry, ...]:
    """Return every bundled text."""
    return tuple(msgspec.json.decode(_data("manifest.json"), type=list[Entry]))


def names() -> list[str]:
    """Return the names of the bundled sets."""
    return sorted({entry.corpus for entry in manifest()})


def corpus(name: str = "default", split: str = "held-out") -> Corpus:
    """Return a bundled set.

    Raises:
        ValueRangeError: There is no such set or half.
        FormatError: A file differs from its hash.
    """
    entries = [entry for entry in manifest() if (entry.corpus, entry.split) == (name, split)]
    if not entries:
        raise ValueRangeError(
            f"corpus: {name!r} {split!r} is not bundled. Use one of {', '.join(names())} with {' or '.join(SPLITS)}."
        )
    parts = []
    for entry in entries:
        data = _data(entry.file)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise FormatError(f"{entry.file}: its hash is not the manifest's. Reinstall kvant.")
        parts.append(Part(domain=entry.domain, text=data.decode(), sha256=entry.sha256))
    return mixture(name, split, tuple(parts))


def text_file(path: Path) -> Corpus:
    """Read any UTF-8 file as a set of one domain.

    Raises:
        FormatError: It is absent, empty or not UTF-8.
        LimitError: It is larger than `MAX_TEXT_BYTES`.
    """
    if not path.is_file():
        raise FormatError(f"{path}: there is no such file. Give a UTF-8 text.")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise LimitError(f"{path}: {path.stat().st_size} bytes break the limit of {MAX_TEXT_BYTES}. Take a part of it.")
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start} is not UTF-8. Convert it, e.g. with iconv.") from error
    if not text.strip():
        raise FormatError(f"{path}: is empty. Give a text of a few thousand words.")
    return mixture(path.name, "", (Part(domain="text", text=text, sha256=hashlib.sha256(data).hexdigest()),))


def check_unseen(text: Corpus, variant: Path, metadata: Mapping[str, Value]) -> None:
    """Refuse to measure a variant on what it was calibrated on.

    Compared are the hashes of the text and of its parts with the variant's `kvant.calibration.sha256`, and the text's
    name with the last part of its `quantize.imatrix.dataset`, or of what an MLX directory has for that. A copy under
    another name cannot be told.

    Raises:
        ValueRangeError: It was.
    """
    hashes = {text.sha256, *(part.sha256 for part in text.parts)}
    used = metadata.get(CALIBRATION_HASH_KEY)
    same_hash = used is not None and not hashes.isdisjoint(str(used.value).replace(",", " ").split())
    named = [str(metadata[key].value) for key in (CALIBRATION_NAME_KEY, MLX_NAME_KEY) if key in metadata]
    same_name = Path(text.label).name in [Path(name.replace("\\", "/")).name for name in named]
    if same_hash or same_name:
        raise ValueRangeError(
            f"{variant}: was calibrated on {text.label}, so figures measured on it would flatter the file. "
            "Use --corpus default or another text."
        )


def mixture(name: str, split: str, parts: tuple[Part, ...]) -> Corpus:
    """Return a text whose domains alternate."""
    text = _interleave([part.text for part in parts])
    return Corpus(name=name, split=split, text=text, sha256=hashlib.sha256(text.encode()).hexdigest(), parts=parts)


def _interleave(texts: list[str]) -> str:
    """Alternate pieces of several texts, cut at ends of lines; one text stays as it is."""
    if len(texts) == 1:
        return texts[0]
    queues = [_pieces(text) for text in texts]
    turns = max(map(len, queues))
    return "".join(queue[turn] for turn in range(turns) for queue in queues if turn < len(queue))


def _pieces(text: str) -> list[str]:
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + PIECE_CHARACTERS)
        end = len(text) if end < 0 else end + 1
        pieces.append(text[start:end])
        start = end
    return pieces


def _data(name: str) -> bytes:
    return resources.files("kvant.evaluate").joinpath("data", name).read_bytes()
