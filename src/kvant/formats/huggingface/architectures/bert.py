"""Encoders of BERT's layout: BERT (BGE, MiniLM, E5, GTE) and XLM-RoBERTa (BGE-M3, multilingual E5), and rerankers.

llama.cpp computes the GELU of both as a polynomial from a table of float16, where transformers takes the error
function: states differ by about that. The pooler is no part of an embedding and is left out, as upstream leaves it out.

Source: llama.cpp 0.3.36 `conversion/bert.py`, `src/models/bert.cpp`; transformers 5.24 `modeling_xlm_roberta`
(positions begin after the padding's id).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import INTEGERS, NORM_EPSILON
from kvant.formats.huggingface.architectures.pooling import POOLED, pooling
from kvant.formats.huggingface.architectures.refusals import check_derived_head, check_values
from kvant.formats.huggingface.architectures.transforms import Transform
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.lazy import rows_of
from kvant.metadata import Value, ValueType, array, boolean
from kvant.tensors import LazyTensor, Tensor

NAMES = {
    "attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense", "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm",
}  # fmt: skip
OUTSIDE = {
    "token_embd": "embeddings.word_embeddings", "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings", "token_embd_norm": "embeddings.LayerNorm",
}  # fmt: skip
ENTRIES = frozenset({
    "type_vocab_size", "layer_norm_eps", "position_embedding_type", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "directionality", "pooler_fc_size", "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "output_past",
    "sbert_ce_default_activation_function", "sentence_transformers",
})  # fmt: skip
_SQUARE = ("hidden_size", "hidden_size")
_BIASED = (*NAMES, "token_embd_norm", "cls", "cls.output")


def renamed(name: str, _: Config) -> str:
    """Give norms of old checkpoints their names of today."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def check(config: Config) -> None:
    """Refuse positions that are no embeddings, and layers that look at what came before only."""
    check_derived_head(config, "bert")
    check_values(config, "bert", position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)


def computed(config: Config) -> dict[str, Value]:
    """Return that all tokens see each other, the pooling, and the labels of a classifier."""
    found: dict[str, Value] = {"attention.causal": boolean(False), **pooling(config)}
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and not (len(labels) == 2 and labels.get("0") == "LABEL_0"):
        found["classifier.output_labels"] = array(ValueType.STRING, [str(labels[key]) for key in sorted(labels)])
    return found


BERT = Family(
    architecture="bert",
    classes=("BertModel", "BertForMaskedLM"),
    model_type="bert",
    models="BGE, MiniLM, E5, GTE and other encoders",
    activation="gelu",
    rope_types=frozenset(),
    block="encoder.layer",
    names=NAMES,
    outside=OUTSIDE,
    renamed=renamed,
    prefixes=("bert.",),
    modules=POOLED,
    skipped=("pooler.", "cls.", "embeddings.position_ids"),
    ends=("token_embd", "position_embd", "token_types", "token_embd_norm"),
    has_head=False,
    required=tuple(NAMES),
    shapes={
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), _SQUARE),
        "ffn_up": ("intermediate_size", "hidden_size"), "ffn_down": ("hidden_size", "intermediate_size"),
        "position_embd": ("max_position_embeddings", "hidden_size"), "token_embd_norm": ("hidden_size",),
    },
    counts=INTEGERS[:4],
    epsilons=(NORM_EPSILON,),
    biased=_BIASED,
    engine_biases=frozenset(_BIASED),
    check=check,
    computed=computed,
    entries=ENTRIES,
    one_way="its pooling is in files of sentence-transformers, which a GGUF does not hold",
    defaults={
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    },
)  # fmt: skip


def first_position(config: Config) -> int:
    """Return the row of the first token's position: those up to the padding's id are not used."""
    return 1 + config.integer("pad_token_id", 1, least=0)


def _used_positions(config: Config) -> dict[str, Any]:
    left = config.integer("max_position_embeddings") - first_position(config)
    if left < 1:
        raise FormatError(
            f"{config.path}: max_position_embeddings leaves {left} positions after those up to the padding's id. "
            f"Correct it."
        )
    return {"max_position_embeddings": left}


def _from_first(tensor: Tensor, config: Config) -> LazyTensor:
    first, rows = first_position(config), tensor.shape[0]
    return rows_of(tensor, first, rows, (max(0, rows - first), *tensor.shape[1:]))


XLM_ROBERTA = dataclasses.replace(
    BERT,
    classes=("XLMRobertaModel", "XLMRobertaForMaskedLM", "XLMRobertaForSequenceClassification"),
    model_type="xlm-roberta",
    models="BGE-M3, multilingual E5, BGE reranker v2",
    prefixes=("roberta.",),
    skipped=("pooler.", "lm_head.", "embeddings.position_ids"),
    outside={**OUTSIDE, "cls": "classifier.dense", "cls.output": "classifier.out_proj"},
    transforms={"position_embd": Transform(forward=_from_first)},
    derived=_used_positions,
    entries=ENTRIES | {"classifier_dropout"},
    defaults={**BERT.defaults, "pad_token_id": 1},
)
