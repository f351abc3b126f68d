"""Documents that others wrote: reading them, what decoding their JSON raises, and the number of the form one has.

Every document of kvant's own names its form in a field called as the document: `plan: 1`. A new number is given only
to what an older reader would misread; fields are added without one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kvant._version import __version__
from kvant.errors import FormatError, KvantError, UnsupportedFormatError

JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding JSON raises where it is malformed, of another type, too deep or not UTF-8."""


def read_document(path: Path, kind: str, max_bytes: int) -> bytes:
    """Return the bytes of a document, of which no more is read than one can have.

    Raises:
        KvantError: It cannot be read.
        FormatError: It is longer than a document of its kind.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise KvantError(f"{path}: {error.strerror or error}. Check the path.") from error
    if len(data) > max_bytes:
        raise FormatError(f"{path}: more than {max_bytes} bytes is no {kind}. Check the path.")
    return data


def check_version(document: Mapping[str, Any], name: str, newest: int, *, subject: object) -> None:
    """Refuse a document of a form that this kvant does not read; one that names none is of the first.

    Args:
        document: The document.
        name: Its kind, which is the field's name.
        newest: The newest form that is read.
        subject: Where it is from, for errors: a path, a URL.

    Raises:
        UnsupportedFormatError: It is of a newer form.
        FormatError: What stands there is no number of a form.
    """
    found = document.get(name, 1)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise FormatError(f"{subject}: {name}: {str(found)[:80]!r} is no number of its form. Write {newest}.")
    if found > newest:
        raise UnsupportedFormatError(
            f"{subject}: {name}: {found} is newer than {newest}, the newest form that kvant {__version__} reads. "
            "Update kvant, or make the file again with this one."
        )
