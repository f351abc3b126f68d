"""Classes that kvant has no family of: what converts them, and which known ones they are nearest to."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.upstream_table import PROJECTORS, TEXT
from kvant.formats.huggingface.config import shown
from kvant.formats.lookalikes import encoder

CONVERTER = "upstream's converter"
N_NEAREST = 3

KEPT_WHOLE = frozenset({
    "StepVLForConditionalGeneration", "Sarashina2VisionForCausalLM", "Exaone4_5_ForConditionalGeneration",
    "Step3p7ForConditionalGeneration", "KimiK3ForConditionalGeneration",
})  # fmt: skip
"""Classes that upstream's converter takes by their own name, whatever class their `text_config` names.

Source: llama-cpp-python 0.3.36, `conversion/base.py`, `get_model_architecture`.
"""


def upstream_class(config: Mapping[str, Any]) -> str:
    """Return the class that upstream's converter takes a model for; empty if config.json names none.

    Args:
        config: config.json as it is, with its `text_config`.

    Source: llama-cpp-python 0.3.36, `conversion/base.py`, `get_model_architecture`.
    """
    outer = _first(config.get("architectures"))
    inner = next((c for c in map(config.get, _TEXT_CONFIGS) if isinstance(c, dict)), {})
    return outer if outer in KEPT_WHOLE else _first(inner.get("architectures")) or outer


_TEXT_CONFIGS = ("lfm", "language_config", "lm_config", "llm_config", "text_config")
"""Where a multimodal model has the configuration of its text part; the first that is there counts."""


def _first(names: Any) -> str:
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def unknown_class(name: str, subject: object, families: Collection[str]) -> UnsupportedModelError:
    """Return the error for a class that kvant has no family of: who converts it, or what it is nearest to.

    Args:
        name: The class.
        subject: The file that names it.
        families: The classes that kvant has families of.
    """
    if name in TEXT:
        return UnsupportedModelError(
            f"{subject}: architecture {shown(name)} is none of kvant's own families. {CONVERTER.capitalize()} makes a "
            f"GGUF of it, `kvant convert DIR`, and what comes after starts from that file."
        )
    if name in PROJECTORS:
        return UnsupportedModelError(
            f"{subject}: architecture {shown(name)} is the eyes or ears of a model, or its wrapper with them, and no "
            f"class of a language model is said. Give the directory of the whole model; if this is it, add the class "
            f'to text_config as published models have it, such as architectures: ["LlamaForCausalLM"] where its '
            f"model_type is llama. The projector alone is written with --mmproj."
        )
    if encoder(name):
        return UnsupportedModelError(
            f"{subject}: architecture {shown(name)} is an encoder or classifier that neither kvant nor {CONVERTER} "
            f"makes a GGUF of. Export it to ONNX (optimum-cli export onnx) and make that int8: kvant quantize "
            f"model.onnx -t int8-dynamic."
        )
    near = nearest(name, families)
    return UnsupportedModelError(
        f"{subject}: architecture {shown(name)} is known neither to kvant nor to the pinned version of {CONVERTER}"
        f"{', nearest are ' + ', '.join(near) if near else ''}. If it computes what a known one does, name that in "
        f"architectures (`kvant convert --list-architectures` shows all). Else llama.cpp would need a graph for it and "
        f"its converter a class: a newer one that has both is tried with KVANT_CONVERTER_SOURCE=its directory, "
        f"`kvant convert DIR --converter upstream`."
    )


def nearest(name: str, families: Collection[str]) -> list[str]:
    """Return the known classes that are spelled most like a name, best first."""
    known = {known.lower(): known for known in (*TEXT, *families)}
    return [known[one] for one in difflib.get_close_matches(name.lower(), known, n=N_NEAREST, cutoff=0.6)]
