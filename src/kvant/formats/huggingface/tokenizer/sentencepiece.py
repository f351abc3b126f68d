"""SentencePiece's own file, `tokenizer.model`: a protobuf message, of which a few fields are read, with bounds checks.

Source: sentencepiece_model.proto (`ModelProto`: 1 pieces {1 piece, 2 score, 3 type}, 2 trainer_spec {3 model_type},
3 normalizer_spec {2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces}); protobuf wire format.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvant.errors import FormatError, LimitError, UnsupportedModelError
from kvant.formats import protobuf
from kvant.formats.huggingface.tokenizer.files import MAX_FILE_BYTES
from kvant.formats.huggingface.tokenizer.vocabulary import MAX_TOKENS, check_text
from kvant.formats.lookalikes import check_pointer

BPE = 2
MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a SentencePiece model; `type` has the numbers of `TokenType`."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a `tokenizer.model` says.

    Attributes:
        pieces: Tokens by id.
        add_dummy_prefix: Whether a space is put before a text.
        has_charsmap: Whether characters are normalized.
        strips_spaces: Whether white space at the ends, and all but one of spaces together, is removed.
    """

    pieces: list[Piece]
    add_dummy_prefix: bool
    has_charsmap: bool = False
    strips_spaces: bool = False


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece BPE model.

    Raises:
        FormatError: Not such a file, or cut short.
        LimitError: Too large, or too many pieces.
        UnsupportedModelError: Not a BPE model.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise LimitError(f"{path}: {size} bytes are more than the limit of {MAX_FILE_BYTES} for a tokenizer file.")
    data = path.read_bytes()
    check_pointer(path, data)
    try:
        model, kind = _model(data)
    except (ValueError, struct.error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: is not a SentencePiece model: {error}. Download it again.") from error
    if not model.pieces:
        raise FormatError(f"{path}: is not a SentencePiece model: it holds no piece. Download it again.")
    if kind != BPE:
        raise UnsupportedModelError(
            f"{path}: a SentencePiece model of type {MODEL_TYPES.get(kind, kind)} is not supported. Supported: BPE."
        )
    return model


def _model(data: bytes) -> tuple[SentencePieceModel, int]:
    pieces: list[Piece] = []
    kind, prefix, charsmap, strips = 1, True, False, True
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            if len(pieces) == MAX_TOKENS:
                raise LimitError(f"tokenizer.model: holds more pieces than the limit of {MAX_TOKENS}.")
            pieces.append(_piece(value))
        elif number == 2 and isinstance(value, bytes):
            kind = int(dict(_fields(value)).get(3, kind))
        elif number == 3 and isinstance(value, bytes):
            spec = dict(_fields(value))
            prefix, strips = bool(spec.get(3, prefix)), bool(spec.get(4, strips))
            charsmap = bool(spec.get(2, b""))
    return SentencePieceModel(pieces, prefix, charsmap, strips), kind


def _piece(data: bytes) -> Piece:
    text, score, kind = b"", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    decoded = text.decode("utf-8")
    check_text(decoded)
    if not 1 <= kind <= 6:
        raise ValueError(f"piece {decoded[:40]!r} has type {kind}")
    return Piece(decoded, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a message: an int for varints, bytes for everything else."""
    for number, wire, value, start, stop in protobuf.fields(data, 0, len(data)):
        yield number, value if wire == protobuf.VARINT else data[start:stop]
