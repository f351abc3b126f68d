"""Every class of Hugging Face models that becomes a GGUF, and who converts it."""

import msgspec

from kvant.formats.huggingface.architectures.registry import FAMILIES
from kvant.formats.huggingface.architectures.upstream_table import PROJECTORS, TEXT
from kvant.recipes.convert.upstream import NATIVE, UPSTREAM


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A class and its way.

    Attributes:
        name: The class, as `architectures` in config.json names it.
        architecture: llama.cpp's name of what it becomes.
        converter: `native` or `upstream`.
        has_projector: Whether upstream's converter knows its eyes or ears, too.
    """

    name: str
    architecture: str
    converter: str
    has_projector: bool


def architectures() -> tuple[Architecture, ...]:
    """Return every class: kvant's families in the order of documentation, then those of upstream's converter alone."""
    native = {name: family.architecture for family in FAMILIES for name in family.classes}
    rest = {name: architecture for name, architecture in TEXT.items() if name not in native}
    return tuple(
        Architecture(name=name, architecture=architecture, converter=way, has_projector=name in PROJECTORS)
        for way, classes in ((NATIVE, native), (UPSTREAM, rest))
        for name, architecture in classes.items()
    )
