"""What is told of the projector that goes with a model, and lies beside it."""

from typing import Literal

import msgspec

from kvant.units import format_bytes


class Companion(msgspec.Struct, frozen=True, kw_only=True):
    """A model's projector, as it is to lie beside the model.

    Attributes:
        source: The model's directory, or the projector's file.
        way: How it is made: by kvant, by upstream's converter, as a copy of a file, or of one in another type.
        kind: What the engine calls it; empty of an estimate.
        type: Type of its matrices.
        size_bytes: Its bytes; exact, but of an estimate.
        memory_bytes: Memory that it takes beside its model, with a picture.
        is_estimate: Whether its size is one, since upstream's converter alone knows what it writes.
    """

    source: str
    way: Literal["native", "upstream", "copy", "quantize"]
    kind: str
    type: str
    size_bytes: int
    memory_bytes: int
    is_estimate: bool = False

    def in_words(self) -> str:
        """Say what it takes."""
        about = "about " if self.is_estimate else ""
        return f"{about}{format_bytes(self.size_bytes)}, {about}{format_bytes(self.memory_bytes)} of memory"


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A projector that lies beside a variant.

    Attributes:
        file: Its name.
        kind: What the engine calls it.
        type: Type of its matrices.
        size_bytes: Its bytes.
        memory_bytes: Memory that it takes beside its model, with a picture.
        sha256: Its hash.
    """

    file: str
    kind: str
    type: str
    size_bytes: int
    memory_bytes: int
    sha256: str
