"""Names of models: `host/namespace/model:tag@sha256:digest`, and where each lies in a directory.

Every part is checked before it becomes part of a path, on every system alike: a store may be copied to another one.
"""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Self

from kvant.errors import ModelNameError

DEFAULT_HOST = "registry.kvant.local"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

MAX_HOST, MAX_NAMESPACE, MAX_MODEL, MAX_TAG = 253, 96, 96, 128  # characters; all are ASCII
MAX_NAME = MAX_HOST + MAX_NAMESPACE + MAX_MODEL + MAX_TAG + 100  # separators and a digest

_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*(?::[0-9]{1,5})?"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}")
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
_HINT = "Write [[host/]namespace/]model[:tag][@sha256:digest], of letters, digits, '_', '-' and '.'."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """The name of a model in the store.

    Attributes:
        host: Registry that the name belongs to; a port may follow.
        namespace: Person or organisation there.
        model: The model.
        tag: Its variant or version.
        digest: SHA-256 of the manifest as 64 hexadecimal digits, if the name says which bytes it means.
    """

    host: str = DEFAULT_HOST
    namespace: str = DEFAULT_NAMESPACE
    model: str
    tag: str = DEFAULT_TAG
    digest: str | None = None

    def __post_init__(self) -> None:
        _check(self.host, "host", _HOST, MAX_HOST)
        _check(self.namespace, "namespace", _PART, MAX_NAMESPACE)
        _check(self.model, "model", _PART, MAX_MODEL)
        _check(self.tag, "tag", _PART, MAX_TAG)
        if _SHARD.fullmatch(self.tag):
            raise ModelNameError(f"tag: {self.tag!r} looks like a shard of a file. Choose another tag.")
        if self.digest is not None and not is_digest(self.digest):
            raise ModelNameError(f"digest: {self.digest[:80]!r} is not 64 hexadecimal digits. {_HINT}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name; what it does not say has its default.

        Raises:
            ModelNameError: It is not a name: a forbidden character, an empty or too long part, too many parts.
        """
        if len(text) > MAX_NAME:
            raise ModelNameError(f"name: {len(text)} characters are above {MAX_NAME}. Choose a shorter one.")
        rest, at, digest = text.partition("@")
        if at and not digest.startswith("sha256:"):
            raise ModelNameError(f"name: {text!r} has no sha256: digest after '@'. {_HINT}")
        *places, last = rest.split("/")
        model, colon, tag = last.partition(":")
        if len(places) > 2:
            raise ModelNameError(f"name: {text!r} has {len(places) + 1} parts between '/', above 3. {_HINT}")
        return cls(
            host=places[0] if len(places) == 2 else DEFAULT_HOST,
            namespace=places[-1] if places else DEFAULT_NAMESPACE,
            model=model,
            tag=tag if colon else DEFAULT_TAG,
            digest=digest.removeprefix("sha256:") if at else None,
        )

    def __str__(self) -> str:
        """Return the shortest text that `parse` reads as this name."""
        tag = "" if self.tag == DEFAULT_TAG else f":{self.tag}"
        return self._place() + self.model + tag + self._digest()

    @property
    def tagged(self) -> str:
        """The shortest text that still says the tag, as `smollm2:latest`, without a digest."""
        return f"{self._place()}{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        """The text with every part, as `host/namespace/model:tag`, without a digest."""
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """What two names must not share: they would be one file where case does not count."""
        return self.full.lower()

    @property
    def undigested(self) -> "ModelName":
        """The same name without a digest."""
        return replace(self, digest=None)

    @property
    def directory(self) -> PurePosixPath:
        """Where the full name lies below a directory; four parts deep, the tag included."""
        return PurePosixPath(self.host.replace(":", "+"), self.namespace, self.model)

    @property
    def readable(self) -> PurePosixPath:
        """Where the shortest name lies below a directory, for people.

        No two names meet there: no part ends in `.gguf`, as the file beside the directories of others does.
        """
        return PurePosixPath(*self._place().replace(":", "+").split("/")[:-1], self.model)

    def _place(self) -> str:
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/"
        return "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"

    def _digest(self) -> str:
        return "" if self.digest is None else f"@sha256:{self.digest}"


def is_digest(text: str) -> bool:
    """Tell whether a text is 64 hexadecimal digits in lower case."""
    return _DIGEST.fullmatch(text) is not None


def _check(text: str, what: str, form: re.Pattern[str], limit: int) -> None:
    """Refuse a part that a file system or a shell could read as something else."""
    if len(text) > limit:
        raise ModelNameError(f"{what}: {len(text)} characters are above {limit}. Choose a shorter one.")
    if not form.fullmatch(text) or ".." in text:
        raise ModelNameError(f"{what}: {text!r} is not a {what} of a model. {_HINT}")
    if text.split(".")[0].lower() in _DEVICES:
        raise ModelNameError(f"{what}: {text!r} is a device on Windows. Choose another name.")
    if text.lower().endswith((".gguf", ".json", ".partial")):
        raise ModelNameError(f"{what}: {text!r} ends like a file. Leave the ending out.")
