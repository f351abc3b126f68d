"""Projectors: the files beside a language model that turn pictures and sounds into what it reads.

A projector is a GGUF of architecture `clip`. Which one belongs to a model is told by its width, which must be the
model's, and where several have that, by names: `mmproj-NAME...gguf` for `NAME...gguf`.

Source: llama.cpp `tools/mtmd/clip-impl.h` (keys), `clip.cpp` (`clip_n_mmproj_embd`).
"""

import re
from pathlib import Path

import msgspec

from kvant.errors import KvantError, UnsupportedFormatError
from kvant.formats.gguf.kinds import PROJECTOR, kind_of
from kvant.formats.gguf.reader import read_gguf
from kvant.model import Model

PATTERN = "*mmproj*.gguf"
_ENDS = re.compile(r"(?:^|[-_.])(?:mmproj|model|(?:I?Q|TQ|BF|F|MXFP)\d\w*)(?=[-_.]|$)", re.IGNORECASE)
_MIX = re.compile(r"-kvant-\d++\.\d\d(?:-\d++)?$")
_OLD = frozenset({"mlp", "mlp_norm", "ldp", "ldpv2"})
"""LLaVA's, whose `projection_dim` is not the language model's width."""

HEARD = 480
"""Patches of a picture that take as much memory as half a minute of sound: the engine reserves 2.5 numbers of the
widest layer for each of 1500 positions, measured with Whisper's encoders of 64 numbers."""

_PREFERRED = ("F16", "BF16", "Q8_0")


class Projector(msgspec.Struct, frozen=True, kw_only=True):
    """A projector's file.

    Attributes:
        path: It.
        size_bytes: Its bytes.
        kind: What the engine calls it: `idefics3`, `qwen3vl_merger`, ...
        width: Numbers that it gives for a token; 0 if it does not tell.
        sees: Whether it takes pictures.
        hears: Whether it takes sounds.
        patches: Patches of the largest square picture that it encodes at once, or of a sound; 0 if it does not tell.
        hidden: Numbers of a patch inside it, at its widest.
    """

    path: Path
    size_bytes: int
    kind: str
    width: int
    sees: bool
    hears: bool
    patches: int = 0
    hidden: int = 0

    @property
    def abilities(self) -> list[str]:
        """What it gives a model, in Ollama's words."""
        return ["vision"] * self.sees + ["audio"] * self.hears


def read_projector(path: Path) -> Projector:
    """Read a projector's header.

    Raises:
        FormatError: The file is damaged.
        UnsupportedFormatError: It is no projector.
    """
    model = read_gguf(path)
    if kind_of(model) != PROJECTOR:
        raise UnsupportedFormatError(
            f"{path}: is a {model.architecture} model, no projector. Give a file as mmproj-NAME-F16.gguf."
        )
    return described(model, path, sum(file.stat().st_size for file in model.files))


def described(model: Model, path: Path, size_bytes: int) -> Projector:
    """Return what a projector's metadata say of it, of whatever file."""
    has_vision = model.get("clip.has_vision_encoder")
    return Projector(
        path=path, size_bytes=size_bytes,
        kind=_kind(model), width=_width(model),
        sees=has_vision is True, hears=model.get("clip.has_audio_encoder") is True,
        patches=max(
            (_number(model, "vision.image_size") // max(1, _number(model, "vision.patch_size"))) ** 2,
            HEARD if model.get("clip.has_audio_encoder") is True else 0,
        ),
        hidden=max(_number(model, f"{sense}.{key}") for sense in ("vision", "audio")
                   for key in ("feed_forward_length", "embedding_length")),
    )  # fmt: skip


def _kind(model: Model) -> str:
    kinds = [model.get(f"clip.{sense}projector_type") for sense in ("", "vision.", "audio.")]
    return next((kind for kind in kinds if isinstance(kind, str)), "mlp")


def _number(model: Model, key: str) -> int:
    value = model.get(f"clip.{key}")
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _width(model: Model) -> int:
    if _kind(model) in _OLD:
        last = next((model.tensors[name] for name in ("mm.2.weight", "mm.3.weight") if name in model.tensors), None)
        return last.shape[0] if last is not None else 0
    return _number(model, "vision.projection_dim") or _number(model, "audio.projection_dim")


def projectors_beside(path: Path) -> list[Path]:
    """Return the files beside a model that call themselves projectors."""
    return sorted(file for file in path.parent.glob(PATTERN) if file != path)


def projector_for(path: Path, width: int) -> Projector | None:
    """Return the projector beside a model that belongs to it; None if there is none, or no telling which.

    Args:
        path: The model's file.
        width: Numbers of its hidden state, `embedding_length`.
    """
    fitting = []
    for file in projectors_beside(path):
        try:
            found = read_projector(file)
        except (KvantError, OSError):
            continue
        if found.width == width:
            fitting.append(found)
    own = _stem(path)
    named = [found for found in fitting if _stem(found.path) and _stem(found.path) == own]
    near = named or [found for found in fitting if not _stem(found.path)] or fitting
    if len({_stem(found.path) for found in near}) > 1:  # of several models, none of which has this one's name
        return None
    return min(near, key=_order, default=None)


def _stem(path: Path) -> str:
    """Return a file's name without what says that it is a projector, and of which type."""
    return re.sub(r"[^a-z0-9]+", "-", _ENDS.sub("", _MIX.sub("", path.stem)).lower()).strip("-")


def _order(projector: Projector) -> tuple[int, str]:
    """Of one projector in several types: half precision before others."""
    upper = projector.path.stem.upper()
    kind = next((i for i, name in enumerate(_PREFERRED) if re.search(rf"(?:^|[-_.]){name}(?:[-_.]|$)", upper)), 3)
    return kind, projector.path.name
