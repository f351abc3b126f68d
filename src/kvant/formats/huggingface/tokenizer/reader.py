"""A tokenizer's two forms: the files of a Hugging Face directory and the `tokenizer.*` keys of GGUF.

files        the files, read with limits   + sources: which of them is read; tekken: Mistral's own
vocabulary   tokens, types, scores; added tokens
bpe          byte-level BPE (`gpt2` in GGUF)     + pretokenizers: how text is cut into words
spm          SentencePiece-style BPE (`llama`)   + sentencepiece: tokenizer.model
special      roles of special tokens
limits       where the two ways of reading a text differ
charbpe      ranked BPE over characters (`gemma4`)
wordpiece    BERT's (`bert`)
unigram      XLM-RoBERTa's and T5's (`t5`)
keys         metadata keys that all of them have
padding      embedding rows beyond the tokens
writer       the way back
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.entries import tokenizer_remarks
from kvant.formats.huggingface.tokenizer.bpe import byte_level_vocabulary, is_byte_level, merge_strings, read_merges
from kvant.formats.huggingface.tokenizer.charbpe import is_ranked, ranked_vocabulary
from kvant.formats.huggingface.tokenizer.files import TokenizerFiles, read_templates
from kvant.formats.huggingface.tokenizer.keys import (
    around_remarks,
    suppressed_keys,
    template_keys,
    token_type_count,
    vocabulary_keys,
)
from kvant.formats.huggingface.tokenizer.limits import (
    byte_level_remarks,
    engine_name,
    flag_remarks,
    space_remarks,
)
from kvant.formats.huggingface.tokenizer.pretokenizers import identify
from kvant.formats.huggingface.tokenizer.sources import read_tokenizer_files
from kvant.formats.huggingface.tokenizer.special import ENGINE_DEFAULTS, read_special_tokens, unnamed_roles
from kvant.formats.huggingface.tokenizer.spm import is_sentencepiece_style, sentencepiece_vocabulary
from kvant.formats.huggingface.tokenizer.unigram import is_unigram, unigram_keys
from kvant.formats.huggingface.tokenizer.vocabulary import read_added_tokens
from kvant.formats.huggingface.tokenizer.wordpiece import NORMALIZED_BY, is_wordpiece, wordpiece_keys
from kvant.formats.huggingface.tokenizer.writer import write_tokenizer
from kvant.metadata import Value, ValueType, array, boolean, string

__all__ = ["tokenizer_metadata", "write_tokenizer"]

LLAMA_LIKE = frozenset({
    "llama", "mistral", "mixtral", "ministral", "ministral3", "smollm3", "granite", "granitemoe", "granitemoeshared",
    "apertus", "arcee", "afmoe",
})  # fmt: skip
"""`model_type`s whose directories upstream's converter reads by its rules for Llama."""
SEGMENTED = frozenset({"roberta", "camembert", "bert", "xlm-roberta", "nomic_bert"})
"""`model_type`s with a byte-level tokenizer whose embeddings have token types."""
STARCODER_VOCABULARY = 49152
"""Vocabulary size by which upstream tells Granite and SmolLM models, which want no BOS."""


def tokenizer_metadata(
    directory: Path, config: Mapping[str, Any], remarks: list[str] | None = None
) -> dict[str, Value]:
    """Describe the tokenizer of a model directory under GGUF keys, chat template included, in upstream's order.

    Args:
        directory: Holds tokenizer.json or tokenizer.model, and what else describes the tokenizer.
        config: Parsed config.json.
        remarks: Is told, a sentence each, what is left out or done otherwise by the engine.

    Raises:
        FormatError: A file is not what it should be, or ids clash.
        LimitError: A file or a count is larger than a tokenizer's can be.
        UnsupportedModelError: A kind of tokenizer or pre-tokenizer that the engine does not have.
    """
    return describe(read_tokenizer_files(directory), config, [] if remarks is None else remarks)


def describe(files: TokenizerFiles, config: Mapping[str, Any], remarks: list[str]) -> dict[str, Value]:
    """Do what `tokenizer_metadata` does, with files that are read already."""
    if is_wordpiece(files):
        keys = wordpiece_keys(files, config, remarks)
    elif is_unigram(files):
        keys = unigram_keys(files, config, remarks)
    elif is_ranked(files, config):
        keys = _ranked_keys(files, config, remarks)
    elif is_byte_level(files.tokenizer):
        keys = _byte_level_keys(files, config, remarks)
    elif is_sentencepiece_style(files):
        keys = _sentencepiece_keys(files, config, remarks)
    else:
        model = files.tokenizer.get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedModelError(
            f"{files.directory}: a tokenizer of type {kind!r} is not supported. Supported: BPE over bytes,"
            " SentencePiece-style BPE with byte fallback, WordPiece and Unigram."
        )
    stated = {k: v for k, v in files.config.items() if not (is_wordpiece(files) and k in NORMALIZED_BY)}
    remarks += tokenizer_remarks(stated, files.directory / "tokenizer_config.json")
    if files.is_tekken and "tokenizer.chat_template" not in keys:
        remarks.append(
            "tekken.json holds no chat template, and none is written: prompts are the user's own. Put "
            "chat_template.jinja of the model's Hugging Face version beside it."
        )
    template, taken = files.config.get("chat_template"), keys.get("tokenizer.chat_template")
    if template and taken is not None and isinstance(template, str) and template != taken.value:
        remarks.append("chat_template.jinja counts, as in transformers; tokenizer_config.json holds another one.")
    size = len(keys["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type]
    return _family_keys(files, config, keys) | suppressed_keys(files, size, remarks)


def name_for_engine(name: str, files: TokenizerFiles, keys: Mapping[str, Value], remarks: list[str]) -> str:
    """Spell a model's name so that the engine treats white space beside special tokens as the tokenizer does.

    Args:
        name: The name.
        files: The tokenizer's files.
        keys: What `describe` made of them.
        remarks: Is told what is changed, and what remains different.
    """
    types = np.asarray(keys["tokenizer.ggml.token_type"].value).tolist()
    tokens = keys["tokenizer.ggml.tokens"].value
    spelled, said = engine_name(name, read_added_tokens(files).values(), tokens, types)  # type: ignore[arg-type]
    remarks += said
    return spelled


def _byte_level_keys(files: TokenizerFiles, config: Mapping[str, Any], remarks: list[str]) -> dict[str, Value]:
    added = read_added_tokens(files)
    vocabulary = byte_level_vocabulary(files.tokenizer, added, config)
    merges = read_merges(files.tokenizer)
    pre = identify(
        files.tokenizer, cleans_spaces=files.config.get("clean_up_tokenization_spaces") is True,
        family=config.get("model_type"),
    )  # fmt: skip
    vocab = files.tokenizer["model"]["vocab"]
    special = read_special_tokens(files, config, added, vocab, len(vocabulary.tokens), remarks)
    defaults = pre.name if pre.name in ENGINE_DEFAULTS else "gpt2"
    if pre.adds_bos:
        special.add.setdefault("bos", False)
    remarks += [
        *byte_level_remarks(files.tokenizer, pre), *flag_remarks(added.values(), files.tokenizer.get("normalizer")),
        *around_remarks(files, special, vocabulary), *unnamed_roles(defaults, special, vocabulary),
    ]  # fmt: skip
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre.name),
        **vocabulary_keys(vocabulary),
        "tokenizer.ggml.merges": array(ValueType.STRING, merge_strings(merges)),
        **special.metadata(),
        **template_keys(read_templates(files)),
    }


def _ranked_keys(files: TokenizerFiles, config: Mapping[str, Any], remarks: list[str]) -> dict[str, Value]:
    added = read_added_tokens(files)
    vocabulary = ranked_vocabulary(files, added, config, remarks)
    vocab = files.tokenizer["model"]["vocab"]
    special = read_special_tokens(files, config, added, vocab, len(vocabulary.tokens), remarks)
    if "bos" not in special.ids:
        raise FormatError(
            f"{files.directory}: names no bos_token, without which llama.cpp ends on the first text it reads so."
            " Name it in tokenizer_config.json."
        )
    special.add["bos"] = True  # the engine adds it whatever the file says
    remarks += [
        *flag_remarks(added.values(), files.tokenizer.get("normalizer")),
        *unnamed_roles("gemma4", special, vocabulary), *around_remarks(files, special, vocabulary),
    ]  # fmt: skip
    return {
        "tokenizer.ggml.model": string("gemma4"),
        **vocabulary_keys(vocabulary),
        "tokenizer.ggml.merges": array(ValueType.STRING, merge_strings(read_merges(files.tokenizer))),
        **special.metadata(),
        **template_keys(read_templates(files)),
        "tokenizer.ggml.add_space_prefix": boolean(False),
    }


def _sentencepiece_keys(files: TokenizerFiles, config: Mapping[str, Any], remarks: list[str]) -> dict[str, Value]:
    added = read_added_tokens(files)
    vocabulary, scheme = sentencepiece_vocabulary(files, added, config, remarks)
    ids = {text: number for number, text in enumerate(vocabulary.tokens)}
    special = read_special_tokens(files, config, added, ids, len(ids), remarks)
    if files.tokenizer:
        special.add.setdefault("bos", False)
    templates = read_templates(files)
    prefix = scheme in ("prepend", "always") or (scheme == "first" and not templates)
    prefix = prefix and not (config.get("model_type") in LLAMA_LIKE and files.config.get("add_prefix_space") is False)
    remarks += [
        *space_remarks(scheme, writes_prefix=prefix), *flag_remarks(added.values(), files.tokenizer.get("normalizer")),
        *around_remarks(files, special, vocabulary), *unnamed_roles("llama", special, vocabulary),
    ]  # fmt: skip
    keys = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        **vocabulary_keys(vocabulary),
        **special.metadata(),
        **template_keys(templates),
    }
    if not prefix:
        keys["tokenizer.ggml.add_space_prefix"] = boolean(False)
    return keys


def _family_keys(files: TokenizerFiles, config: Mapping[str, Any], keys: dict[str, Value]) -> dict[str, Value]:
    """Add what upstream's converter adds for a family of models, whatever the tokenizer."""
    family = config.get("model_type")
    if family in LLAMA_LIKE:
        prefix = files.config.get("add_prefix_space")
        if isinstance(prefix, bool) and "tokenizer.ggml.add_space_prefix" not in keys:
            keys = {"tokenizer.ggml.add_space_prefix": boolean(prefix), **keys}
        if config.get("vocab_size") == STARCODER_VOCABULARY:
            keys["tokenizer.ggml.add_bos_token"] = boolean(False)
    if family in SEGMENTED:
        keys["tokenizer.ggml.token_type_count"] = token_type_count(config)
    return keys
