import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from kvant.errors import FormatError, KvantError, UnsupportedModelError
from kvant.formats.huggingface.tokenizer.reader import tokenizer_metadata
from kvant.formats.huggingface.tokenizer.sentencepiece import Piece, read_sentencepiece
from kvant.testing.tiny_tokenizers import write_tokenizer


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def chunk(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(pieces: list[Piece], model_type: int = 2, prefix: bool | None = None) -> bytes:
    """A ModelProto, written from its definition."""
    out = b""
    for piece in pieces:
        kind = b"" if piece.type == 1 else b"\x18" + varint(piece.type)
        out += chunk(1, chunk(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + kind)
    out += chunk(2, b"\x18" + varint(model_type) + b"\x51" + bytes(8))
    return out + chunk(3, chunk(1, b"identity") + (b"" if prefix is None else b"\x18" + varint(prefix)))


PIECES = [Piece("<unk>", 0.0, 2), Piece("<s>", 0.0, 3), Piece("<0x41>", 0.0, 6), Piece("▁t", -1.5, 1)]


def test_pieces_scores_types_and_prefix(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"

    path.write_bytes(message(PIECES))
    assert read_sentencepiece(path).pieces == PIECES
    assert read_sentencepiece(path).add_dummy_prefix

    path.write_bytes(message(PIECES, prefix=False))
    assert not read_sentencepiece(path).add_dummy_prefix


def test_it_is_preferred_to_tokenizer_json(tmp_path: Path) -> None:
    write_tokenizer("llama2-spm", tmp_path, 600)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces = [Piece(t, -0.5 * i, 6 if t.startswith("<0x") else kinds.get(t, 1)) for t, i in vocab.items()]
    (tmp_path / "tokenizer.model").write_bytes(message(pieces, prefix=False))

    keys = tokenizer_metadata(tmp_path, {"vocab_size": 602})

    assert np.asarray(keys["tokenizer.ggml.scores"].value)[300:302].tolist() == [-150.0, -150.5]
    assert "tokenizer.ggml.add_space_prefix" not in keys  # by tokenizer.json, which transformers uses

    (tmp_path / "tokenizer.json").unlink()
    alone = tokenizer_metadata(tmp_path, {})
    assert list(alone["tokenizer.ggml.tokens"].value) == list(vocab)  # type: ignore[arg-type]
    assert "tokenizer.ggml.add_bos_token" in alone  # from tokenizer_config.json
    assert alone["tokenizer.ggml.add_space_prefix"].value is False


def test_unigram_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(message(PIECES, model_type=1))

    with pytest.raises(UnsupportedModelError, match="Unigram"):
        read_sentencepiece(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x80" * 11,
        b"\x0b\x00",
        chunk(1, chunk(1, b"\xff\xfe")),
        chunk(1, b"\x15\x00"),
        chunk(1, b"\x18\x07"),
        b"not protobuf at all",
    ],
)
def test_damaged(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)

    with pytest.raises(FormatError, match="SentencePiece model"):
        read_sentencepiece(path)


def test_every_truncation_is_an_error_or_a_shorter_model(tmp_path: Path) -> None:
    path, whole = tmp_path / "tokenizer.model", message(PIECES)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with contextlib.suppress(KvantError):
            assert len(read_sentencepiece(path).pieces) <= len(PIECES)
