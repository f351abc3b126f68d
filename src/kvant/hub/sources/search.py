"""Find models on the hub: GGUF, ONNX and MLX, with what decides whether one can be used here."""

import re
from collections.abc import Sequence

import msgspec

from kvant.devices.detect import detect
from kvant.devices.profiles import profile_of
from kvant.errors import SourceError, ValueRangeError
from kvant.hub.licences import Policy, is_allowed, read_policy
from kvant.hub.sources.huggingface import HuggingFace, Repository
from kvant.hub.sources.variants import variants_of
from kvant.progress import SILENT, Progress

FORMATS = ("gguf", "onnx", "mlx", "safetensors")
WEIGHTS_SHARE, ENGINE_BYTES = 1.25, 250_000_000
"""Memory of a model as a share of its file, for the copies and keys and values, and beside it: an estimate."""

_INSTRUCT = re.compile(r"(?:^|[-_.])(?:instruct|chat|it|assistant|sft|dpo|thinking|reasoner)(?:[-_.]|$)", re.IGNORECASE)
_DOMAINS = {
    "code": re.compile(r"code|coder|starcoder|sql", re.IGNORECASE),
    "maths": re.compile(r"math", re.IGNORECASE),
    "medicine": re.compile(r"(?:^|[-_.])(?:med|medical|bio|clinical|health)", re.IGNORECASE),
    "law": re.compile(r"(?:^|[-_.])(?:law|legal)", re.IGNORECASE),
    "finance": re.compile(r"(?:^|[-_.])(?:fin|finance|trading)(?:[-_.]|$)", re.IGNORECASE),
    "vision": re.compile(r"(?:^|[-_.])(?:vl|vision|vlm|llava)(?:[-_.]|$)", re.IGNORECASE),
    "embedding": re.compile(r"embed|(?:^|[-_.])(?:bge|gte|e5)(?:[-_.]|$)", re.IGNORECASE),
}
_WEIGHTS = {".safetensors": "safetensors", ".onnx": "onnx", ".gguf": "gguf"}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A repository that was found.

    Attributes:
        id: `org/name`.
        formats: Formats it holds.
        kind: `instruct`, `base` or `embedding`.
        domains: What it is made for beside general use.
        base_models: What it was made from.
        licence: Its licence.
        is_allowed: The licence needs no asking.
        downloads: Of the last 30 days.
        n_variants: GGUF variants.
        size_bytes: Of the variant named, or of all weights.
        variant: The largest one that fits this machine by estimate, else the smallest.
        fits: Whether it does; None where memory is not known.
        pull: The command that gets it; empty for formats that are not run here yet.
    """

    id: str
    formats: tuple[str, ...]
    kind: str
    domains: tuple[str, ...]
    base_models: tuple[str, ...]
    licence: str
    is_allowed: bool
    downloads: int
    n_variants: int
    size_bytes: int
    variant: str
    fits: bool | None
    pull: str


def search(
    text: str,
    *,
    limit: int = 10,
    format: str | None = None,  # noqa: A002 - as the option is called
    fits: bool = False,
    licences: Sequence[str] = (),
    usable_bytes: int | None = None,
    progress: Progress = SILENT,
) -> list[Found]:
    """Find models by words of their names, most downloaded first.

    Args:
        text: The words.
        limit: Most models.
        format: One of FORMATS; None for all.
        fits: Only what fits.
        licences: Only these licences.
        usable_bytes: Memory that a model may take; by default what this machine has, if that is known.
        progress: Told the repositories looked at.

    Raises:
        ValueRangeError: An unknown format or no words.
        TransferError: The hub fails.
    """
    if format is not None and format not in FORMATS:
        raise ValueRangeError(f"format: {format!r} is not known. Use one of {', '.join(FORMATS)}.")
    if not text.strip() or len(text) > 200:
        raise ValueRangeError("term: needs from 1 to 200 characters. Give a model's name or a part of it.")
    if usable_bytes is None:
        usable_bytes = profile_of(detect(measure=False)).usable_bytes or None
    hub, policy = HuggingFace(), read_policy()
    wanted = {licence.lower() for licence in licences}
    listed = hub.search(text, filters=[format] if format else [], limit=limit * (3 if fits or wanted else 1))
    listed = [repository for repository in listed if not wanted or repository.licence in wanted]
    found: list[Found] = []
    progress.start("search", len(listed), "models")
    for repository in listed:
        if len(found) >= limit:
            break
        try:
            whole = hub.repository(repository.id)  # sizes are not in the list
        except SourceError:  # gone or closed since it was listed
            whole = repository
        one = describe(whole, policy, usable_bytes)
        progress.advance("search", 1)
        if not fits or one.fits:
            found.append(one)
    progress.finish("search")
    return found


def describe(repository: Repository, policy: Policy, usable_bytes: int | None) -> Found:
    """Return what is shown of a repository."""
    formats, variants = formats_of(repository), variants_of(repository)
    fitting = [v for v in variants if _fits(v.size_bytes, usable_bytes)]
    variant = next(iter([*fitting[::-1], *variants[:1]]), None)
    size = variant.size_bytes if variant else _weights_bytes(repository, formats)
    pull = ""
    if variant is not None:
        pull = f"kvant pull hf:{repository.id}:{variant.name}"
    elif "safetensors" in formats and "mlx" not in formats:
        pull = f"kvant pull hf:{repository.id}"
    words = f"{repository.id.partition('/')[2]}"
    domains = tuple(name for name, form in _DOMAINS.items() if form.search(words))
    is_instruct = bool(_INSTRUCT.search(words)) or "conversational" in repository.tags
    kind = "embedding" if "embedding" in domains else "instruct" if is_instruct else "base"
    return Found(
        id=repository.id, formats=formats, kind=kind, domains=tuple(d for d in domains if d != "embedding"),
        base_models=repository.base_models, licence=repository.licence or "unknown",
        is_allowed=is_allowed(repository.licence, policy, is_gated=repository.is_gated),
        downloads=repository.downloads, n_variants=len(variants), size_bytes=size,
        variant=variant.name if variant else "", fits=_fits(size, usable_bytes) if size and usable_bytes else None,
        pull=pull,
    )  # fmt: skip


def formats_of(repository: Repository) -> tuple[str, ...]:
    """Return the formats that a repository holds, told by its files and, where they are not known, its tags."""
    held = {name for file in repository.files for ending, name in _WEIGHTS.items() if file.path.endswith(ending)}
    held |= {"mlx"} if "mlx" in repository.tags and "safetensors" in held else set()
    return tuple(name for name in FORMATS if name in (held or set(repository.tags)))


def _weights_bytes(repository: Repository, formats: Sequence[str]) -> int:
    endings = (*(ending for ending, name in _WEIGHTS.items() if name in formats), ".onnx_data", ".onnx.data")
    return sum(file.size_bytes for file in repository.files if file.path.endswith(endings))


def _fits(size_bytes: int, usable_bytes: int | None) -> bool:
    return usable_bytes is not None and size_bytes * WEIGHTS_SHARE + ENGINE_BYTES <= usable_bytes
