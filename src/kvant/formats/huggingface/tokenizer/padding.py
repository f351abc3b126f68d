"""Embedding rows beyond the tokenizer's tokens: checkpoints are padded to round sizes, tokenizers are not."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvant.formats.huggingface.tokenizer.vocabulary import MAX_TOKENS, META
from kvant.metadata import TokenType, Value, ValueType, array

TOKENS, TYPES, SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))
PAD_SCORE = -10000.0
"""Score that upstream's converter gives to padding."""


def pad_to_rows(keys: Mapping[str, Value], n_rows: int, remarks: list[str]) -> dict[str, Value]:
    """Add an unused token `[PAD{id}]` for every row that has none, as upstream's converter does.

    Args:
        keys: Metadata of a tokenizer.
        n_rows: Rows of the embedding; no more than a tokenizer can have are filled.
        remarks: Is told how many are added.
    """
    tokens: list[str] = list(_items(keys.get(TOKENS)))
    start = len(tokens)
    if not 0 < start < n_rows <= MAX_TOKENS:
        return dict(keys)
    mark = META if keys["tokenizer.ggml.model"].value == "bert" else ""
    tokens += [f"{mark}[PAD{number}]" for number in range(start, n_rows)]
    if len(set(tokens)) != len(tokens):
        return dict(keys)  # a padding's text is a token: the check of rows says that they do not fit
    remarks.append(
        f"The embedding has {n_rows} rows for {start} tokens: {n_rows - start} unused tokens, [PAD{start}] and on, are "
        "written for the rest."
    )
    more = n_rows - start
    types = [*_items(keys.get(TYPES)), *[int(TokenType.UNUSED)] * more]
    padded = {**keys, TOKENS: array(ValueType.STRING, tokens), TYPES: array(ValueType.INT32, np.asarray(types, "<i4"))}
    if SCORES in keys:
        scores = [*_items(keys.get(SCORES)), *[PAD_SCORE] * more]
        padded[SCORES] = array(ValueType.FLOAT32, np.asarray(scores, "<f4"))
    return padded


def _items(value: Value | None) -> list[Any]:
    if value is None or isinstance(value.value, bool | int | float | str):
        return []
    return np.asarray(value.value).tolist() if isinstance(value.value, np.ndarray) else list(value.value)
