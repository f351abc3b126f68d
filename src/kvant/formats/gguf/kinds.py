"""What a GGUF file is: not every one is a model."""

from collections.abc import Collection

from kvant.errors import UnsupportedFormatError
from kvant.model import Model

MODEL, PROJECTOR = "model", "mmproj"

_CLIP = "clip"
"""Architecture of projectors, also of those made before `general.type` said so."""

_INSTEAD = {
    "imatrix": "an importance file, not a model. Give it with --imatrix, beside the model it was measured on.",
    "adapter": (
        "a LoRA adapter, not a model. Merge it into its base first (llama-export-lora --lora FILE -m BASE), or in "
        "Python with peft's merge_and_unload(), and give the result."
    ),
    PROJECTOR: "a projector of pictures or sounds (mmproj), a companion of a language model. Give the language model.",
}
"""By `general.type`. Source: gguf-py `constants.py`, `GGUFType`."""


def kind_of(model: Model) -> str:
    """Return what `general.type` says, or what the tensors do where it is silent: `model` as a rule."""
    kind = model.get("general.type")
    if isinstance(kind, str) and kind in _INSTEAD:
        return kind
    if model.architecture == _CLIP:
        return PROJECTOR
    if model.tensors and all(name.endswith((".lora_a", ".lora_b")) for name in model.tensors):
        return "adapter"
    if model.tensors and all(name.endswith((".in_sum2", ".counts")) for name in model.tensors):
        return "imatrix"
    return MODEL


def check_kind(model: Model, kinds: Collection[str] = (MODEL,)) -> None:
    """Refuse a GGUF that is none of the kinds that can be used.

    Raises:
        UnsupportedFormatError: It is something else; the message says what that is for.
    """
    kind = kind_of(model)
    if kind not in kinds:
        raise UnsupportedFormatError(f"{model.path}: is {_INSTEAD.get(kind, f'of the kind {kind}, no model.')}")
