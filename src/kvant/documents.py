"""Documents that others wrote: what decoding their JSON raises, and the number that says which form one has.

Every document of kvant's own names its form in a field called as the document: `plan: 1`. A new number is given only
to what an older reader would misread; fields are added without one.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from kvant._version import __version__
from kvant.errors import FormatError, UnsupportedFormatError

JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding JSON raises where it is malformed, of another type, too deep or not UTF-8."""


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
