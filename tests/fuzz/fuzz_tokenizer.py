"""Fuzz tokenizer.json and tokenizer_config.json: `python tests/fuzz/fuzz_tokenizer.py -runs=100000`."""

import sys
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.formats.huggingface.tokenizer import bpe, files, pretokenizers, reader, special, spm, vocabulary

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": False}
ADDED = [{"id": 3, "content": "<s>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}]
BYTE_LEVEL = {
    "version": "1.0", "added_tokens": ADDED, "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}, "decoder": BYTES,
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
                       "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "byte_fallback": False},
}  # fmt: skip
SENTENCEPIECE = {
    "version": "1.0", "added_tokens": ADDED, "pre_tokenizer": None,
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    "model": {"type": "BPE", "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2}, "merges": ["a a"], "byte_fallback": True,
              "unk_token": "<unk>"},
}  # fmt: skip
OPTIONS = {
    "add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "<s>"}, "chat_template": "{{ messages }}",
    "added_tokens_decoder": {"3": {"content": "<s>", "special": True}},
}  # fmt: skip
MODEL = {"model_type": "llama", "vocab_size": 6, "bos_token_id": 3, "eos_token_id": [3]}


def seeds(_: Path) -> list[bytes]:
    """tokenizer.json, a zero byte, tokenizer_config.json."""
    return [
        msgspec.json.encode(kind) + b"\0" + msgspec.json.encode(options)
        for kind in (BYTE_LEVEL, SENTENCEPIECE) for options in ({}, OPTIONS)
    ]  # fmt: skip


def exercise(path: Path) -> None:
    """Describe the tokenizer of a directory."""
    first, _, second = path.read_bytes().partition(b"\0")
    directory = path.parent / "model"
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_bytes(first)
    (directory / "tokenizer_config.json").write_bytes(second or b"{}")
    keys = reader.tokenizer_metadata(directory, MODEL)
    assert len(keys["tokenizer.ggml.tokens"].value) == len(keys["tokenizer.ggml.token_type"].value)  # type: ignore[arg-type]


if __name__ == "__main__":
    fuzzing.instrument(bpe, files, pretokenizers, reader, special, spm, vocabulary)
    fuzzing.run(exercise, seeds, is_json=True)
