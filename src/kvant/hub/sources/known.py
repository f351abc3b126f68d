"""Short names: what people call models, and the repositories of the hub that hold their GGUF files.

    name            the usual size
    name:size       as smollm2:135m
    name:size-type  as smollm2:135m-q8_0

Names, sizes and the usual size are those of Ollama's library, so that a name means the same model here and there.
Licences are checked as for any repository.
"""

import re
from dataclasses import dataclass

_TAG = re.compile(r"(?P<size>[0-9.]+[bm])(?:-(?P<variant>[a-z0-9_]+))?")


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one name.

    Attributes:
        pattern: Repository; `{}` stands for the size as it is written there.
        usual: The size that the name alone means.
        sizes: Sizes there are, in lower case, and how the repository writes them.
    """

    pattern: str
    usual: str
    sizes: dict[str, str]


def _sizes(*written: str) -> dict[str, str]:
    return {size.lower(): size for size in written}


FAMILIES = {
    "gemma3": Family("unsloth/gemma-3-{}-it-GGUF", "4b", {s: s for s in ("270m", "1b", "4b", "12b", "27b")}),
    "llama3.2": Family("bartowski/Llama-3.2-{}-Instruct-GGUF", "3b", _sizes("1B", "3B")),
    "phi4-mini": Family("unsloth/Phi-4-mini-instruct-GGUF", "3.8b", _sizes("3.8B")),
    "qwen2.5-coder": Family(
        "Qwen/Qwen2.5-Coder-{}-Instruct-GGUF", "7b", _sizes("0.5B", "1.5B", "3B", "7B", "14B", "32B")
    ),
    "qwen3": Family("unsloth/Qwen3-{}-GGUF", "8b", _sizes("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
    "smollm2": Family("bartowski/SmolLM2-{}-Instruct-GGUF", "1.7b", _sizes("135M", "360M", "1.7B")),
}


def known_repository(name: str) -> tuple[str, str | None] | None:
    """Return the repository that a short name means, and the variant if it names one; None if it is no short name."""
    family, colon, tag = name.lower().partition(":")
    found = FAMILIES.get(family)
    if found is None:
        return None
    match = _TAG.fullmatch(tag if colon and tag != "latest" else found.usual)
    if match is None or match["size"] not in found.sizes:
        return None
    variant = match["variant"]
    return found.pattern.format(found.sizes[match["size"]]), variant.upper() if variant else None


def short_names() -> list[str]:
    """Return all short names with their sizes."""
    return [f"{name}:{size}" for name, family in FAMILIES.items() for size in family.sizes]
