"""Documents that others wrote, as msgspec decodes them; apart from `files`, which every command loads."""

import msgspec

JSON_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What decoding JSON raises where it is malformed, of another type, too deep or not UTF-8."""
