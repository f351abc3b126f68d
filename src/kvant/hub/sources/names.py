"""How people name where a model comes from.

hf:org/name[@revision][:variant or file]     a repository of the Hugging Face hub; hf.co/... and its web address too
smollm2:135m                                 a short name of one (known.py)
https://host/path/x.gguf#sha256=HEX          a file anywhere, by its hash
path/to/x.gguf                               a file here
"""

import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import msgspec

from kvant.errors import SourceError
from kvant.hub.sources.known import known_repository

MAX_CHARACTERS = 2000
MAX_PART_BYTES = 200
"""Of a file's name; file systems allow 255, and a download adds to it."""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_HUB = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,250}}))?(?::(?P<choice>[^:]{{1,500}}))?"
)
_PREFIXES = ("hf:", "hf.co/", "huggingface.co/", "https://hf.co/", "https://huggingface.co/")
_HUB_FORM = "Write hf:org/name, hf:org/name:Q4_K_M or hf:org/name@revision:file.gguf"


class HubSource(msgspec.Struct, frozen=True, kw_only=True):
    """A repository of the hub.

    Attributes:
        repo: `org/name`.
        revision: A branch, tag or commit; None for the usual one.
        choice: A variant or file; None for the usual one.
        short: The short name it was asked for by.
    """

    repo: str
    revision: str | None = None
    choice: str | None = None
    short: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}{f':{self.choice}' if self.choice else ''}"


class UrlSource(msgspec.Struct, frozen=True, kw_only=True):
    """A file at an address, by the SHA-256 of its bytes."""

    url: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}"

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


class FileSource(msgspec.Struct, frozen=True, kw_only=True):
    """A file or directory of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = HubSource | UrlSource | FileSource


def is_remote(text: str) -> bool:
    """Tell whether a text names something that is not on this machine."""
    return text.startswith((*_PREFIXES, "https://", "http://"))


def is_short_name(text: str) -> bool:
    """Tell whether a text is the short name of a repository and no path here."""
    return known_repository(text) is not None and not Path(text).exists()


def parse_source(text: str) -> Source:
    """Read where a model comes from.

    Raises:
        SourceError: It is none of these forms, or an address without a hash.
    """
    if len(text) > MAX_CHARACTERS or not text.isprintable():
        raise SourceError(f"source {text[:80]!r}: is too long or not printable. {_HUB_FORM}.")
    for prefix in _PREFIXES:
        if text.startswith(prefix) and "#" not in text and "/resolve/" not in text:
            return _hub_source(text.removeprefix(prefix).rstrip("/"), text)
    if text.startswith(("https://", "http://")):
        return _url_source(text)
    known = known_repository(text)
    if known is not None and not Path(text).exists():
        return HubSource(repo=known[0], choice=known[1], short=text)
    return FileSource(path=Path(text))


def _hub_source(rest: str, text: str) -> HubSource:
    match = _HUB.fullmatch(rest)
    if match is None or ".." in rest or "//" in rest:
        raise SourceError(f"{text[:200]}: does not name a repository. {_HUB_FORM}.")
    if match["choice"]:
        check_member(match["choice"], text)
    return HubSource(repo=match["repo"], revision=match["revision"], choice=match["choice"])


def _url_source(text: str) -> UrlSource:
    url, fragment = urldefrag(text)
    kind, _, digest = fragment.partition("=")
    if kind != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise SourceError(
            f"{text[:200]}: has no hash, so what comes could not be verified. Add #sha256= and 64 hexadecimal digits."
        )
    source = UrlSource(url=url, sha256=digest.lower())
    if not re.fullmatch(r"[A-Za-z0-9][\w .+-]{0,200}\.gguf", source.file_name):
        raise SourceError(f"{text[:200]}: does not end in the name of a .gguf file. Give the address of one.")
    return source


def check_member(path: str, subject: str) -> str:
    """Return the path of a file inside a repository, or refuse one that could lead out of a directory here.

    Raises:
        SourceError: It is absolute, climbs, is too long, or holds characters that no file name should.
    """
    parts = path.split("/")
    longest = max(len(part.encode(errors="replace")) for part in parts)
    if longest > MAX_PART_BYTES or len(path) > MAX_CHARACTERS:
        raise SourceError(f"{subject[:200]}: names a file of {longest} bytes, above {MAX_PART_BYTES}. Do not use it.")
    if not path.isprintable() or any(c in path for c in '\\:*?"<>|') or any(p in ("", ".", "..") for p in parts):
        raise SourceError(f"{subject[:200]}: names the file {path[:80]!r}, which is no plain path. Do not use it.")
    return path
