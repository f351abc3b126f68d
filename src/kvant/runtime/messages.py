"""What the engine's process and its owner say to each other: length-prefixed MessagePack over pipes."""

import struct
from typing import BinaryIO, Protocol

import msgspec

from kvant.errors import EngineError

HEADER = struct.Struct("<I")
MAX_MESSAGE_BYTES = 1 << 28


class Open(msgspec.Struct, tag=True, frozen=True):
    """Load a model and make a context; see `LlamaCpp`."""

    path: str
    n_ctx: int
    n_threads: int
    all_logits: bool = False
    repack: bool = True
    vocab_only: bool = False
    n_seq: int = 1
    spinning: bool | None = None  # of ONNX Runtime's idle threads
    embeddings: bool = False
    weightless: bool = False
    ranking: bool = False
    is_observed: bool = False


class OpenProjector(msgspec.Struct, tag=True, frozen=True):
    """Load a projector but for its weights' values, and forget it; see `clip.check`."""

    path: str


class Senses(msgspec.Struct, tag=True, frozen=True):
    """What a projector that the engine opened gives a model."""

    sees: bool
    hears: bool


class Tokenize(msgspec.Struct, tag=True, frozen=True):
    """Turn text into token ids."""

    text: str
    add_special: bool
    parse_special: bool = False


class Logits(msgspec.Struct, tag=True, frozen=True):
    """Run one window; put float32 logits from position `first` on at byte `offset` of the shared memory."""

    tokens: bytes
    first: int
    offset: int


class Next(msgspec.Struct, tag=True, frozen=True):
    """Read a text, of which the context may hold the start; put float32 logits of what follows into shared memory."""

    tokens: bytes


class Embed(msgspec.Struct, tag=True, frozen=True):
    """Ask for the vector of a text."""

    tokens: bytes


class Rank(msgspec.Struct, tag=True, frozen=True):
    """Ask for the scores of a pair of texts; see `LlamaCpp.pair_tokens`."""

    query: str
    document: str


class Extend(msgspec.Struct, tag=True, frozen=True):
    """Append tokens to sequences side by side; put float32 logits of what follows into shared memory."""

    parts: list[bytes]


class Listen(msgspec.Struct, tag=True, frozen=True):
    """Run a text and ask which weights take part; opened with `is_observed`, as for all that follows of its kind."""

    tokens: bytes


class SumUp(msgspec.Struct, tag=True, frozen=True):
    """Sum up the inputs of these weights from now on, and nothing else: sums start at zero."""

    weights: "list[Sum]"


class Sum(msgspec.Struct, frozen=True):
    """What is summed up of one weight's inputs x: x², and with `moments` x xᵀ, too, of each matrix of its stack."""

    name: str
    columns: int
    stack: int
    moments: bool
    layer: int  # whose attention weighs tokens in moments; -1 for none


class Observe(msgspec.Struct, tag=True, frozen=True):
    """Run a text whose tokens weigh so much in second moments, float32 [tokens]; the counts of x² know no weights."""

    tokens: bytes
    weights: bytes


class Moments(msgspec.Struct, tag=True, frozen=True):
    """Put the second moment of one matrix of a weight into shared memory: rows of float32 [columns, columns]."""

    name: str
    slot: int


class Squares(msgspec.Struct, tag=True, frozen=True):
    """Ask for the sums of x² of a weight, and how many x there were."""

    name: str


class Probe(msgspec.Struct, tag=True, frozen=True):
    """Run a text with errors on some weights' products, and ask how far its predictions go from those without."""

    tokens: bytes
    errors: "list[WeightError]"


class WeightError(msgspec.Struct, frozen=True):
    """Errors of random signs in one weight.

    Attributes:
        name: The weight.
        role: How it takes part; see observer.py.
        scales: Size of the errors in each of its rows, float32 [stack, rows].
        stack: Matrices of the weight.
        first_sign: Where its signs begin among those of all.
    """

    name: str
    role: str
    scales: bytes
    stack: int
    first_sign: int


class Pieces(msgspec.Struct, tag=True, frozen=True):
    """Ask for the bytes that tokens stand for."""

    ids: list[int]


class Ends(msgspec.Struct, tag=True, frozen=True):
    """Ask for the tokens that end an answer."""


class Speed(msgspec.Struct, tag=True, frozen=True):
    """Measure the open model; see `speed.measure`."""

    n_prompt: int
    n_generate: int
    repeats: int


class Opened(msgspec.Struct, tag=True, frozen=True):
    """What the engine says of a model it has loaded; the fields are those of `LlamaCpp`."""

    n_vocab: int
    add_bos: bool
    add_eos: bool
    bos: int
    n_params: int
    tensor_bytes: int
    n_ctx_train: int
    load_s: float


class Tokens(msgspec.Struct, tag=True, frozen=True):
    """Token ids as little-endian int32 bytes."""

    ids: bytes


class Vector(msgspec.Struct, tag=True, frozen=True):
    """A text's vector as little-endian float32 bytes."""

    values: bytes


class Noted(msgspec.Struct, tag=True, frozen=True):
    """It was done."""


class Product(msgspec.Struct, frozen=True):
    """A weight that takes part; those of one `input` are multiplied with the same activations."""

    name: str
    role: str
    columns: int
    rows: int
    stack: int
    input: int


class Heard(msgspec.Struct, tag=True, frozen=True):
    """The weights that take part, in the engine's order."""

    products: list[Product]


class SquareSums(msgspec.Struct, tag=True, frozen=True):
    """Sums of x², float64 [stack, columns], and numbers of x, float64 [stack]."""

    sums: bytes
    counts: bytes


class Answered(msgspec.Struct, tag=True, frozen=True):
    """What errors did.

    Attributes:
        divergence: KL divergence of every token's prediction from the one without errors, float32 [tokens].
        energies: Of every error asked for, in that order: the mean over tokens and rows of its square on products;
            of rows looked up, the mean over tokens of the row's squared length.
    """

    divergence: bytes
    energies: list[float]


class Bytes(msgspec.Struct, tag=True, frozen=True):
    """Bytes of each token asked for."""

    pieces: list[bytes]


class Wrote(msgspec.Struct, tag=True, frozen=True):
    """Rows of logits put into the shared memory."""

    rows: int


class Failed(msgspec.Struct, tag=True, frozen=True):
    """An error that kvant raised on purpose; `value_error` if its arguments were wrong."""

    message: str
    value_error: bool = False


class Measured(msgspec.Struct, tag=True, frozen=True):
    """Speed and memory of one model on one machine at one moment.

    Attributes:
        pp_tok_s: Prompt tokens per second, median of the runs.
        tg_tok_s: Generated tokens per second, median of the runs; 0 if none was to be generated.
        fastest_s: Seconds of the fastest token generated: the one that other programs disturbed least; else infinite.
        n_threads: Threads used.
        n_prompt: Tokens in the prompt.
        n_generate: Tokens made per run.
        repeats: Runs of each.
        rss_bytes: Peak resident memory of the process that ran the model, bytes.
        rss_before_bytes: Its resident memory before the model was loaded, bytes.
        energy_j_per_token: Energy the processor package used per generated token; None if it cannot be read.
        energy_reason: Why it cannot be read.
    """

    pp_tok_s: float
    tg_tok_s: float
    fastest_s: float
    n_threads: int
    n_prompt: int
    n_generate: int
    repeats: int
    rss_bytes: int
    rss_before_bytes: int
    energy_j_per_token: float | None
    energy_reason: str | None


Request = (
    Open | OpenProjector | Tokenize | Logits | Next | Extend | Embed | Rank | Pieces | Ends | Speed
    | Listen | SumUp | Observe | Moments | Squares | Probe
)  # fmt: skip
Reply = Opened | Senses | Tokens | Vector | Bytes | Wrote | Measured | Noted | Heard | SquareSums | Answered | Failed


class Readable(Protocol):
    """What messages are read from: a stream, or `child.Reader`."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


def packed(message: msgspec.Struct) -> bytes:
    """Return one message as it is sent."""
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body)) + body


def write(stream: BinaryIO, message: msgspec.Struct) -> None:
    """Write one message and flush."""
    stream.write(packed(message))
    stream.flush()


def read_body(stream: Readable) -> bytes | None:
    """Read one message's bytes; None when the other side has gone.

    Raises:
        EngineError: The length is beyond any message's.
    """
    header = _read(stream, HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    if length > MAX_MESSAGE_BYTES:
        raise EngineError(
            f"engine process: a message of {length} bytes breaks the limit {MAX_MESSAGE_BYTES}. Report it."
        )
    body = _read(stream, length)
    return body if len(body) == length else None


def _read(stream: Readable, size: int) -> bytes:
    """Read so many bytes, or what there is before the end."""
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
