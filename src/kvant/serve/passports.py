"""What was measured of a model that the gateway serves."""

from kvant.errors import FormatError
from kvant.hub.passports import Measured, beside, read
from kvant.serve.library import ModelFile
from kvant.serve.logs import WARNING, write


def measured(file: ModelFile) -> Measured | None:
    """Return what was measured of a model, from its settings or the passport beside its file; None if nothing was.

    A passport beside a file counts only if it names that size: another file may have taken the name since. One of a
    newer form is none here, and the log says so: the model can be used without.
    """
    try:
        if file.settings.passport is not None:
            return read(file.settings.passport, f"{file.name}: passport")
        document = beside(file.path, file.size_bytes)
        return None if document is None else read(document, file.path)
    except FormatError as error:
        write("passport_not_read", level=WARNING, model=file.name, reason=str(error))
        return None
