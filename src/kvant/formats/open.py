"""Open a model of any format read here."""

from pathlib import Path

from kvant.formats.base import sniff
from kvant.model import Model


def open_model(path: Path | str) -> Model:
    """Open a GGUF file (or any shard of one) or a Hugging Face directory; weights are mapped, not read.

    Raises:
        FormatError: It is damaged, or no format read here.
        UnsupportedModelError: A Hugging Face model of an architecture that is not known.
    """
    path = Path(path)
    if sniff(path) == "gguf":
        from kvant.formats.gguf.reader import read_gguf

        return read_gguf(path)
    from kvant.formats.huggingface.reader import read_huggingface

    return read_huggingface(path)
