"""The same text gives the same token ids through `tokenizers` (tokenizer.json) and through the engine (our GGUF keys).

Where the engine itself differs, the texts are named, with the reason; every other text must agree id for id, special
tokens parsed, BOS and EOS added by each side's own rules.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from kvant.formats.huggingface.tokenizer import tokenizer_metadata
from kvant.metadata import Value, ValueType
from kvant.runtime.llamacpp import LlamaCpp
from odd_texts import TEXTS
from tiny_tokenizers import KINDS, write_tokenizer

N_VOCAB = 1200

ENGINE_DIFFERS = {
    "qwen2": {"decomposed"},  # NFC: the engine has no normalizer
    "phi4-mini": {"marks"},  # the engine's expression leaves combining marks out of words
    "mistral-tekken": {"marks"},  # likewise
    # A Metaspace that marks only the first word, and not before a space; the engine marks whatever follows a special
    # token and every text, as SentencePiece itself does.
    "mistral-spm": {"leading", "only spaces", "special"},
    "gemma3": {"marks of spaces"},  # the file has the added token of two marks as two spaces
}


def write_vocabulary(path: Path, metadata: dict[str, Value], name: str = "tiny") -> None:
    """Write a GGUF file of a tokenizer alone, with the official writer."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    for key, value in metadata.items():
        if value.type is ValueType.ARRAY:
            assert not isinstance(value.value, (bool, int, float))
            writer.add_array(key, np.asarray(value.value).tolist() if value.item_type != 8 else list(value.value))
        else:
            writer.add_key_value(key, value.value, gguf.GGUFValueType(int(value.type)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def differing_texts(directory: Path, config: dict[str, Any], scratch: Path, name: str = "tiny") -> set[str]:
    """Return the names of texts whose ids differ between the two sides."""
    hugging_face = Tokenizer.from_file(str(directory / "tokenizer.json"))
    path = scratch / "vocabulary.gguf"
    write_vocabulary(path, tokenizer_metadata(directory, config), name)
    with LlamaCpp(path, vocab_only=True) as engine:
        return {
            title
            for title, text in TEXTS.items()
            if engine.tokenize(text, add_special=True, parse_special=True).tolist() != hugging_face.encode(text).ids
        }


@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_tokenizers_agree(kind: str, tmp_path: Path) -> None:
    write_tokenizer(kind, tmp_path, N_VOCAB)
    config = {"vocab_size": N_VOCAB, "model_type": "llama"}

    # The engine lets Phi-3's special tokens swallow spaces only if the model's name says Phi-3.
    differing = differing_texts(tmp_path, config, tmp_path, name="phi-3 tiny" if kind == "phi3" else "tiny")

    assert differing == ENGINE_DIFFERS.get(kind, set())


@pytest.mark.model
def test_engine_and_tokenizers_agree_on_the_reference_model(reference_model: Path, tmp_path: Path) -> None:
    config = json.loads((reference_model / "config.json").read_text())

    assert differing_texts(reference_model, config, tmp_path) == set()
