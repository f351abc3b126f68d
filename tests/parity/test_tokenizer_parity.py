"""The same text gives the same token ids through `tokenizers` (tokenizer.json) and through the engine (our GGUF keys).

Where the engine itself differs, the texts are named, with the reason; every other text must agree id for id, special
tokens parsed, BOS and EOS added by each side's own rules.
"""

import json
import random
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.metadata import Value, ValueType
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_tokenizers import KINDS, TEXT, write_tokenizer

N_VOCAB = 1200

ENGINE_DIFFERS = {
    "qwen2": {"decomposed"},  # NFC: the engine has no normalizer
    "phi4-mini": {"marks"},  # the engine's expression leaves combining marks out of words
    "mistral-tekken": {"marks"},  # likewise
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


START = {"mistral-spm": "[INST]"}
"""What texts begin with. A Metaspace that marks only the first word of a text is written for chat prompts, which begin
with a special token: the engine then marks no word."""


def differing_texts(
    directory: Path, config: dict[str, Any], texts: Iterable[str], scratch: Path, name: str = "tiny", start: str = ""
) -> set[str]:
    """Return the texts whose ids differ between the two sides."""
    hugging_face = Tokenizer.from_file(str(directory / "tokenizer.json"))
    path = scratch / "vocabulary.gguf"
    write_vocabulary(path, tokenizer_metadata(directory, config), name)
    with LlamaCpp(path, vocab_only=True) as engine:
        return {
            text
            for text in texts
            if engine.tokenize(start + text, add_special=True, parse_special=True).tolist()
            != hugging_face.encode(start + text).ids
        }


def random_texts(n: int, seed: int) -> list[str]:
    """Mix the characters of all texts with whitespace and characters of many scripts, assigned or not."""
    chance = random.Random(seed)
    known = "".join(TEXTS.values()) + TEXT
    blocks = [
        (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x590), (0x590, 0x700), (0x900, 0xA00), (0xE00, 0xE80),
        (0x1100, 0x1200), (0x2000, 0x2100), (0x2190, 0x2400), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
        (0xFF00, 0xFFF0), (0x10000, 0x10400), (0x1F300, 0x1F700),
    ]  # fmt: skip

    def character() -> str:
        kind = chance.random()
        if kind < 0.75:
            return chance.choice(known if kind < 0.6 else " \n\t\r  '")
        return chr(chance.randrange(*chance.choice(blocks)))

    return ["".join(character() for _ in range(chance.randrange(5, 60))) for _ in range(n)]


def has_case_or_marks_beyond_ascii(text: str) -> bool:
    return any(unicodedata.category(c) in {"Mn", "Mc", "Me", "Lu", "Ll", "Lt"} for c in text if ord(c) > 127)


MAY_DIFFER: dict[str, Callable[[str], bool]] = {
    "qwen2": lambda text: not unicodedata.is_normalized("NFC", text),
    "phi4-mini": has_case_or_marks_beyond_ascii,
    "mistral-tekken": has_case_or_marks_beyond_ascii,
    "gemma3": lambda text: "\u2581" in text,
}


def prepare(kind: str, directory: Path) -> tuple[dict[str, Any], str]:
    """Write a tokenizer; return its model's configuration and name."""
    write_tokenizer(kind, directory, N_VOCAB)
    # The engine lets Phi-3's special tokens swallow spaces only if the model's name says Phi-3.
    return {"vocab_size": N_VOCAB, "model_type": "llama"}, "phi-3 tiny" if kind == "phi3" else "tiny"


@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_tokenizers_agree(kind: str, tmp_path: Path) -> None:
    config, name = prepare(kind, tmp_path)

    differing = differing_texts(tmp_path, config, TEXTS.values(), tmp_path, name, START.get(kind, ""))

    assert {title for title, text in TEXTS.items() if text in differing} == ENGINE_DIFFERS.get(kind, set())


@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_tokenizers_agree_on_random_texts(kind: str, tmp_path: Path) -> None:
    config, name = prepare(kind, tmp_path)

    differing = differing_texts(tmp_path, config, random_texts(300, seed=5), tmp_path, name, START.get(kind, ""))

    may_differ = MAY_DIFFER.get(kind)
    assert {text for text in differing if may_differ is None or not may_differ(text)} == set()


@pytest.mark.model
def test_engine_and_tokenizers_agree_on_the_reference_model(reference_model: Path, tmp_path: Path) -> None:
    config = json.loads((reference_model / "config.json").read_text())

    texts = [*TEXTS.values(), *random_texts(1000, seed=6)]

    assert differing_texts(reference_model, config, texts, tmp_path) == set()
