"""Tokenizers asked both ways: the ids of texts through `tokenizers` and through the engine, and keys in short form."""

import hashlib
import json
import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer

from kvant.evaluate.odd_texts import TEXTS
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.metadata import Value, ValueType
from kvant.runtime.llamacpp import LlamaCpp
from kvant.testing.tiny_tokenizers import TEXT


def write_vocabulary(path: Path, metadata: dict[str, Value], name: str = "tiny") -> None:
    """Write a GGUF file of a tokenizer alone, with the official writer."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    for key, value in metadata.items():
        if value.type is ValueType.ARRAY:
            assert not isinstance(value.value, (bool, int, float))
            items = np.asarray(value.value).tolist() if value.item_type != ValueType.STRING else list(value.value)
            item_type = gguf.GGUFValueType(int(value.item_type or 0))
            writer.add_key_value(key, items, gguf.GGUFValueType.ARRAY, sub_type=item_type)
        else:
            writer.add_key_value(key, value.value, gguf.GGUFValueType(int(value.type)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


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


def plain(value: Value) -> Any:
    """A metadata value in JSON's types."""
    found: Any = value.value
    if isinstance(found, bool | int | float | str):
        return found
    return found.tolist() if isinstance(found, np.ndarray) else list(found)


def shortened(kind: int, value: Any) -> list[Any]:
    """A key as the golden file has it: its type and value, of a list the length and hash."""
    if isinstance(value, list):
        value = [float(np.float32(item)) if isinstance(item, float) else item for item in value]
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        return [kind, len(value), digest[:32]]
    return [kind, value]


def trained(directory: Path) -> str:
    """What tells whether a vocabulary is the one that upstream was asked of."""
    return hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()[:32]
