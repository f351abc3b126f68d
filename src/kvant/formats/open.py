"""Open a model of any format read here."""

import dataclasses
from pathlib import Path

from kvant.formats.base import sniff
from kvant.model import Model


def open_model(path: Path | str, *, known_as: str = "") -> Model:
    """Open a GGUF file (or any shard of one) or a Hugging Face directory; weights are mapped, not read.

    Args:
        path: The file or directory.
        known_as: Name that goes into metadata in place of the file's or directory's own.

    Raises:
        FormatError: It is damaged, or no format read here.
        UnsupportedModelError: A Hugging Face model of an architecture that is not known.
    """
    path = Path(path)
    if sniff(path) == "gguf":
        from kvant.formats.gguf.reader import read_gguf

        return dataclasses.replace(read_gguf(path), known_as=known_as or path.name)
    from kvant.formats.huggingface.reader import read_huggingface

    return read_huggingface(path, known_as=known_as)
