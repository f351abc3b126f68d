"""The variants that a repository offers: its GGUF files, shards together, named by their presets."""

import re
from collections.abc import Sequence

import msgspec

from kvant.errors import SourceError
from kvant.formats.gguf.spec import SHARD_NAME
from kvant.hub.sources.huggingface import RepoFile, Repository
from kvant.quant.presets import ALIASES, PRESETS

USUAL = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q8_0")
"""Taken in this order where none is asked for."""

_NOT_MODELS = re.compile(r"(?:^|[-_./])(?:mmproj|imatrix|vocab|draft)(?:[-_.]|$)", re.IGNORECASE)
_NAMES = "|".join(sorted({*PRESETS, *ALIASES}, key=len, reverse=True))
_PRESET = re.compile(
    rf"(?:^|[-_./])((?:UD-)?(?:{_NAMES})(?:_XL|_L)?)(?=[-_./]|$)",
    re.IGNORECASE,
)


_PROJECTOR = re.compile(r"(?:^|[-_.])mmproj(?:[-_.]|$)", re.IGNORECASE)
_FLOATS = ("F16", "BF16", "F32")
"""Types of projectors in the order in which they are taken where none is asked for; others follow, largest first."""

NO_PROJECTOR = "none"


class RemoteVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of a repository.

    Attributes:
        name: Its preset where the name tells, else its file's name without `.gguf`; unique in the repository.
        preset: Its preset, or nothing.
        files: The file, or all shards in order.
        size_bytes: Of all files.
    """

    name: str
    preset: str
    files: tuple[RepoFile, ...]
    size_bytes: int


def variants_of(repository: Repository) -> list[RemoteVariant]:
    """Return the variants of a repository by rising size; incomplete sets of shards are left out."""
    groups: dict[str, list[RepoFile]] = {}
    for file in repository.files:
        name = file.path.rpartition("/")[2]
        if not file.path.lower().endswith(".gguf") or _NOT_MODELS.search(name.lower()):
            continue
        match = SHARD_NAME.fullmatch(file.path)
        groups.setdefault(match["stem"] if match else file.path[: -len(".gguf")], []).append(file)
    found = [(stem, _preset(stem), files) for stem, files in groups.items() if _is_complete(files)]
    presets = [preset for _, preset, _ in found]
    variants = [
        RemoteVariant(
            name=preset if preset and presets.count(preset) == 1 else stem.rpartition("/")[2],
            preset=preset,
            files=tuple(sorted(files, key=lambda f: f.path)),
            size_bytes=sum(f.size_bytes for f in files),
        )
        for stem, preset, files in found
    ]
    return sorted(variants, key=lambda v: (v.size_bytes, v.name))


def choose_variant(variants: Sequence[RemoteVariant], choice: str | None, repo: str) -> RemoteVariant | None:
    """Return the variant that a name, preset or file stands for; without a choice the only one or the usual one.

    Returns:
        The variant; None where nothing was asked for and there is no usual one.

    Raises:
        SourceError: There is no such variant, or more than one.
    """
    if choice is None:
        if len(variants) == 1:
            return variants[0]
        return next((v for usual in USUAL for v in variants if v.name == usual), None)
    wanted = choice.lower()
    found = [v for v in variants if wanted == v.name.lower()]
    found = found or [v for v in variants if any(wanted in (f.path.lower(), _base(f)) for f in v.files)]
    found = found or [v for v in variants if wanted == v.preset.lower()]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(v.name for v in (found or variants)[:40])
    what = "is not one of its variants" if not found else "names more than one of its variants"
    raise SourceError(f"hf:{repo}: {choice[:80]!r} {what}. Use one of {listed or 'none: it holds no GGUF file'}.")


def projectors_of(repository: Repository) -> list[RepoFile]:
    """Return the projectors of a repository: GGUF files that call themselves so, of one file each."""
    return [
        file
        for file in repository.files
        if file.path.lower().endswith(".gguf")
        and _PROJECTOR.search(_base(file))
        and not SHARD_NAME.fullmatch(file.path)
    ]


def choose_projector(repository: Repository, variant: RemoteVariant, choice: str | None) -> RepoFile | None:
    """Return the projector that goes with a variant: of the type or file asked for, else of half precision.

    Returns:
        It; None where there is none, or none is wished for.

    Raises:
        SourceError: There is none of that type or file, or several that no name tells apart.
    """
    found = projectors_of(repository)
    if (choice or "").lower() == NO_PROJECTOR:
        return None
    near = _nearest(found, variant)
    if choice is not None:
        wanted = choice.lower()
        near = [f for f in near if wanted == _type(f).lower()] or [
            f for f in found if wanted in (f.path.lower(), _base(f))
        ]
        if not near:
            listed = ", ".join(f.path for f in found[:_SHOWN]) or "none at all"
            raise SourceError(
                f"hf:{repository.id}: has no projector {choice!r}; it has {listed}. Choose one of them, or none."
            )
    best = sorted(near, key=lambda f: (_rank(f), -f.size_bytes, f.path))
    if len({(f.size_bytes, f.sha256) for f in best[:2]}) > 1 and _type(best[0]) == _type(best[1]):
        listed = ", ".join(f.path for f in best[:_SHOWN])
        raise SourceError(
            f"hf:{repository.id}: has several projectors for {variant.name}: {listed}. Name one "
            "(--mmproj FILE), or none."
        )
    return best[0] if best else None


_SHOWN = 10


def _nearest(found: list[RepoFile], variant: RemoteVariant) -> list[RepoFile]:
    """Of several, those in the variant's folder, and among them those that bear its model's name."""
    folder = variant.files[0].path.rpartition("/")[0]
    found = [f for f in found if f.path.rpartition("/")[0] == folder] or found
    stem = _stem(variant.files[0])
    return [f for f in found if _stem(f) == stem] or found


def _stem(file: RepoFile) -> str:
    """A file's name without what says that it is a projector, a shard, and of which type."""
    name = _base(file).removesuffix(".gguf")
    match = SHARD_NAME.fullmatch(_base(file))
    name = _PROJECTOR.sub("-", match["stem"] if match else name)
    return re.sub(r"[^a-z0-9]+", "-", _PRESET.sub("", name)).strip("-")


def _type(file: RepoFile) -> str:
    return _preset(_base(file).removesuffix(".gguf"))


def _rank(file: RepoFile) -> int:
    kind = _type(file)
    return _FLOATS.index(kind) if kind in _FLOATS else len(_FLOATS)


def _base(file: RepoFile) -> str:
    return file.path.lower().rpartition("/")[2]


def _preset(stem: str) -> str:
    """The preset a file's name ends in; the last one, for a model's own name may look like one."""
    found = _PRESET.findall(stem)
    return found[-1].upper() if found else ""


def _is_complete(files: Sequence[RepoFile]) -> bool:
    shards = [SHARD_NAME.fullmatch(file.path) for file in files]
    if not any(shards):
        return len(files) == 1
    counts = {int(m["count"]) for m in shards if m}
    numbers = sorted(int(m["number"]) for m in shards if m)
    return len(counts) == 1 and numbers == list(range(1, max(counts) + 1)) and all(shards)
