"""Every family kvant converts: the one list."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.bert import BERT, XLM_ROBERTA
from kvant.formats.huggingface.architectures.cohere2 import COHERE2
from kvant.formats.huggingface.architectures.deepseek import DEEPSEEK2, DEEPSEEK3
from kvant.formats.huggingface.architectures.embedding_gemma import EMBEDDING_GEMMA
from kvant.formats.huggingface.architectures.ernie import ERNIE4_5, ERNIE4_5_MOE
from kvant.formats.huggingface.architectures.exaone import EXAONE4
from kvant.formats.huggingface.architectures.falcon_h1 import FALCON_H1
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.gemma2 import GEMMA2
from kvant.formats.huggingface.architectures.gemma3 import GEMMA3
from kvant.formats.huggingface.architectures.gemma3n import GEMMA3N
from kvant.formats.huggingface.architectures.gemma4 import GEMMA4, GEMMA4UNIFIED
from kvant.formats.huggingface.architectures.glm4 import GLM4, GLM4MOE
from kvant.formats.huggingface.architectures.gpt2 import GPT2
from kvant.formats.huggingface.architectures.gpt_oss import GPT_OSS
from kvant.formats.huggingface.architectures.granite import GRANITE
from kvant.formats.huggingface.architectures.granite_moe import GRANITEHYBRID, GRANITEMOE
from kvant.formats.huggingface.architectures.hunyuan import HUNYUAN, HUNYUAN_MOE
from kvant.formats.huggingface.architectures.layer_norms import PHI2, STABLELM, STARCODER2
from kvant.formats.huggingface.architectures.lfm2 import LFM2, LFM2MOE
from kvant.formats.huggingface.architectures.llama import LLAMA, MISTRAL
from kvant.formats.huggingface.architectures.mamba import MAMBA2
from kvant.formats.huggingface.architectures.mistral import MISTRAL3, MIXTRAL
from kvant.formats.huggingface.architectures.modern_bert import MODERN_BERT
from kvant.formats.huggingface.architectures.nemotron_h import NEMOTRON_H
from kvant.formats.huggingface.architectures.nomic_bert import NOMIC_BERT
from kvant.formats.huggingface.architectures.olmo import OLMO2, OLMO3
from kvant.formats.huggingface.architectures.phi3 import PHI3
from kvant.formats.huggingface.architectures.qwen import QWEN2, QWEN3
from kvant.formats.huggingface.architectures.qwen_moe import QWEN2MOE, QWEN3MOE
from kvant.formats.huggingface.architectures.qwen_next import QWEN3NEXT, QWEN35, QWEN35MOE
from kvant.formats.huggingface.architectures.qwen_vl import QWEN2VL, QWEN3VL, QWEN3VLMOE
from kvant.formats.huggingface.architectures.seed_oss import SEED_OSS
from kvant.formats.huggingface.architectures.smollm3 import SMOLLM3
from kvant.formats.huggingface.architectures.unknown import unknown_class
from kvant.formats.huggingface.config import architecture_name, shown
from kvant.model import Model

FAMILIES: tuple[Family, ...] = (
    LLAMA, MISTRAL, SMOLLM3, QWEN2, QWEN3, GEMMA2, GEMMA3, GEMMA3N, GEMMA4, GEMMA4UNIFIED, PHI3, GRANITE, QWEN2MOE,
    QWEN3MOE, QWEN3NEXT, QWEN35, QWEN35MOE, QWEN2VL, QWEN3VL, QWEN3VLMOE, MISTRAL3, MIXTRAL, GPT_OSS, LFM2, LFM2MOE,
    GRANITEMOE, GRANITEHYBRID, OLMO2, OLMO3, EXAONE4, SEED_OSS, STABLELM, STARCODER2, PHI2, GPT2, COHERE2, ERNIE4_5,
    ERNIE4_5_MOE, GLM4, GLM4MOE, HUNYUAN, HUNYUAN_MOE, MAMBA2, FALCON_H1, NEMOTRON_H, BERT, XLM_ROBERTA,
    NOMIC_BERT, MODERN_BERT, EMBEDDING_GEMMA, DEEPSEEK3, DEEPSEEK2,
)  # fmt: skip
"""In the order of documentation; the first of those that share an architecture is what a GGUF becomes."""

BY_CLASS: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.classes}


def family_of_class(name: str, subject: object) -> Family:
    """Return the family of a class named in config.json.

    Raises:
        UnsupportedModelError: kvant does not convert it.
    """
    found = BY_CLASS.get(name)
    if found is None:
        raise unknown_class(name, subject, BY_CLASS)
    return found


def family_of_config(raw: Mapping[str, Any], path: Path) -> Family:
    """Return the family of a config.json: that of its class, or the one that its entries make it.

    Raises:
        FormatError: It names no class.
        UnsupportedModelError: kvant does not convert it.
    """
    family = family_of_class(architecture_name(raw, path), path)
    return family.instead(raw, path) or family


def family_of_model(model: Model) -> Family:
    """Return the family of a GGUF, for writing transformers' names and layout.

    Raises:
        UnsupportedModelError: kvant does not convert it that way.
    """
    architecture, subject = model.architecture, model.path
    for family in FAMILIES:
        if family.architecture == architecture and not family.one_way and family.holds(model):
            return family
    known = dict.fromkeys(family.architecture for family in FAMILIES if not family.one_way)
    reasons = [family.one_way for family in FAMILIES if family.architecture == architecture and family.one_way]
    if reasons:
        raise UnsupportedModelError(
            f"{subject}: models of the architecture {architecture} are written as GGUF only: {reasons[0]}. Use GGUF, "
            f"or the original directory where transformers' layout is asked for."
        )
    raise UnsupportedModelError(
        f"{subject}: architecture {shown(architecture)} is none of those that kvant converts. Use a model of "
        f"one of these: {', '.join(known)}."
    )
