"""Qwen3-Reranker: a Qwen3 whose answer to one question, `yes` or `no`, is all that is asked of it.

Its checkpoints are those of a language model: that they rank is said by their names and cards alone, so these are what
upstream's converter goes by. Of the head the rows of the two answers are kept, `yes` first, and the engine gives their
softmax after the last token of the one prompt that the model was trained with, which comes along as the template
`rerank`.

Source: llama.cpp 0.3.36 `conversion/qwen.py` `Qwen3Model`, `src/llama-graph.cpp` (`build_pooling`); the prompt is the
model card's.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.names import GLOBAL_NAMES, Rule
from kvant.formats.huggingface.architectures.transforms import Transform
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.lazy import selected
from kvant.formats.huggingface.tokenizer.files import find, read_object
from kvant.metadata import Value, ValueType, array, u32
from kvant.tensors import LazyTensor, Tensor

NAME, HEADING = "qwen3-reranker", "# qwen3-reranker"
CARD, MAX_CARD_BYTES = "README.md", 1 << 20
ANSWERS = ("yes", "no")
RANK = 4
"""Of `pooling_type`: what is pooled is a score."""

TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web '
    "search query, retrieve relevant passages that answer the query\n<Query>: {query}\n<Document>: "
    "{document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""What the engine fills in for every pair; other instructions than the card's first need a template of their own."""


def is_reranker(raw: Mapping[str, Any], path: Path) -> bool:
    """Whether a model says that it ranks: by its directory's name, that in config.json, or its card's heading."""
    if NAME in path.parent.resolve().name.lower() or NAME in str(raw.get("_name_or_path", "")).lower():
        return True
    card = find(path.parent, CARD)
    if card is None:
        return False
    with card.open("rb") as file:
        return HEADING.encode() in file.read(MAX_CARD_BYTES).lower()


def reranker(qwen3: Family, raw: Mapping[str, Any], path: Path) -> Family | None:
    """Return the family of a Qwen3 that ranks; None of another."""
    if not is_reranker(raw, path):
        return None
    is_tied = bool(raw.get("tie_word_embeddings", False))
    head = "model.embed_tokens.weight" if is_tied else "lm_head.weight"
    outside = {ours: theirs for ours, theirs in GLOBAL_NAMES.items() if is_tied or ours != "output"}
    return dataclasses.replace(
        qwen3,
        models="Qwen3-Reranker",
        outside=outside,
        outside_rules=(Rule(ours="cls.output.weight", theirs=head, change=Transform(forward=_answers)),),
        ends=("token_embd", "output_norm", "cls.output"),
        has_head=False,
        computed=_computed,
        templates={"rerank": TEMPLATE},
        shapes={**qwen3.shapes, "cls.output": ()},
        remark=(
            "is taken for a Qwen3-Reranker by its name or card: of its head the rows of yes and no are kept, so it "
            "scores pairs of a query and a document (kvant serve, /v1/rerank) and writes no text"
        ),
        one_way="its head is made of two rows of the original's",
    )


def _answers(tensor: Tensor, config: Config) -> LazyTensor:
    """Return the head's rows of the two answers, [2, hidden size]."""
    tokens = _tokens(config.path.parent)
    rows = [tokens.get(answer, -1) for answer in ANSWERS]
    if not all(0 <= row < tensor.shape[0] for row in rows):
        raise FormatError(
            f"{config.path.parent}: its tokenizer gives {' and '.join(ANSWERS)} the tokens {rows}, and the head has "
            f"{tensor.shape[0]} rows. Download tokenizer.json and the weights again."
        )
    return selected(tensor, np.array(rows))


def _tokens(directory: Path) -> dict[str, int]:
    """Return the ids of a tokenizer's tokens by their texts; those that are no numbers are left out."""
    read = read_object(directory, "tokenizer.json")
    model, added = read.get("model"), read.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    found |= {t.get("content"): t.get("id") for t in added if isinstance(t, dict)} if isinstance(added, list) else {}
    return {text: row for text, row in found.items() if text in ANSWERS and type(row) is int}


def _computed(_: Config) -> dict[str, Value]:
    return {"pooling_type": u32(RANK), "classifier.output_labels": array(ValueType.STRING, list(ANSWERS))}
