"""Grammars as the engine reads them, tried before it is asked: it drops one that it does not understand, in silence.

The wheel of llama.cpp carries llguidance, whose C interface is called here: the same code and version that will hold
the answer to the grammar. The vocabulary here is one token per byte, which is all that a grammar's sense depends on.

Native code reads what a client wrote, so this runs in a process of its own; see `runtime/bounded.py`.

Source: llguidance's llguidance.h; llama.cpp's llama.h, `llama_sampler_init_grammar`.
"""

import ctypes
from functools import cache
from pathlib import Path

from kvant.errors import EngineError

BYTES = 255
"""Tokens of one byte; 0xff is none, since it marks special tokens."""

_EOS = BYTES
_EOS_TEXT = b"\xff<eos>"


class _Tokenizer(ctypes.Structure):
    """`LlgTokenizerInit`."""

    _fields_ = (
        ("vocab_size", ctypes.c_uint32), ("tok_eos", ctypes.c_uint32), ("token_lens", ctypes.POINTER(ctypes.c_uint32)),
        ("token_bytes", ctypes.c_char_p), ("tokenizer_json", ctypes.c_char_p), ("assumes_string", ctypes.c_bool),
        ("tokenize_fn", ctypes.c_void_p), ("greedy", ctypes.c_bool), ("user_data", ctypes.c_void_p),
        ("slices", ctypes.c_void_p), ("room", ctypes.c_uint64 * 8),
    )  # fmt: skip


class _Limits(ctypes.Structure):
    """`LlgParserLimits`, as far as it has been the same in all versions."""

    _fields_ = (
        ("max_items_in_row", ctypes.c_size_t), ("initial_lexer_fuel", ctypes.c_uint64),
        ("step_lexer_fuel", ctypes.c_uint64), ("step_max_items", ctypes.c_size_t),
        ("max_lexer_states", ctypes.c_size_t), ("max_grammar_size", ctypes.c_size_t),
    )  # fmt: skip


class _Init(ctypes.Structure):
    """`LlgConstraintInit`, with room for what newer versions append."""

    _fields_ = (
        ("tokenizer", ctypes.c_void_p), ("log_buffer_level", ctypes.c_uint32), ("log_stderr_level", ctypes.c_uint32),
        ("ff_tokens_ok", ctypes.c_bool), ("backtrack_ok", ctypes.c_bool), ("limits", _Limits),
        ("room", ctypes.c_uint64 * 16),
    )  # fmt: skip


DEFAULTS = (2000, 1_000_000, 200_000, 50_000, 250_000, 500_000)
"""llguidance's limits, which the engine keeps to, in the order of `_Limits`."""

WALKS, STEPS = 3, 128
SHARE = 4
"""A grammar may cost this part of the engine's limits: a real vocabulary costs more than one of bytes."""


@cache
def _library() -> ctypes.CDLL:
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineError(f"llama.cpp: its wheel cannot be loaded ({error}). Run: pip install kvant[serve]") from None
    library = ctypes.CDLL(str(Path(xllamacpp.__file__).with_name("xllamacpp.abi3.so")))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    for name, result, arguments in (
        ("llg_constraint_init_set_defaults", None, (pointer, pointer)),
        ("llg_new_tokenizer", pointer, (pointer, text, ctypes.c_size_t)),
        ("llg_new_matcher", pointer, (pointer, text, text)),
        ("llg_matcher_get_error", text, (pointer,)),
        ("llg_matcher_compute_mask", number, (pointer,)),
        ("llg_matcher_get_mask", ctypes.POINTER(ctypes.c_uint32), (pointer,)),
        ("llg_matcher_consume_token", number, (pointer, ctypes.c_uint32)),
        ("llg_matcher_is_accepting", ctypes.c_bool, (pointer,)),
        ("llg_free_matcher", None, (pointer,)),
        ("llama_sampler_init_grammar", pointer, (pointer, text, text)),
        ("llama_sampler_free", None, (pointer,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _start() -> _Init:
    """Return what every matcher starts from: a tokenizer of bytes, and limits below the engine's."""
    library = _library()
    lengths = (ctypes.c_uint32 * (BYTES + 1))(*([1] * BYTES), len(_EOS_TEXT))
    tokens = bytes(range(BYTES)) + _EOS_TEXT
    told = _Tokenizer(vocab_size=BYTES + 1, tok_eos=_EOS, token_lens=lengths, token_bytes=tokens, greedy=True)
    said = ctypes.create_string_buffer(1024)
    tokenizer = library.llg_new_tokenizer(ctypes.byref(told), said, len(said))
    if not tokenizer:
        raise EngineError(f"llguidance: makes no tokenizer ({said.value.decode(errors='replace')}). Report it.")
    init = _Init()
    library.llg_constraint_init_set_defaults(ctypes.byref(init), tokenizer)
    found = tuple(getattr(init.limits, name) for name, _ in _Limits._fields_)
    if found != DEFAULTS:
        raise EngineError(f"llguidance: its limits are {found}, not {DEFAULTS}. Install the version kvant asks for.")
    init.log_stderr_level = 0
    for name, _ in _Limits._fields_[1:]:  # the first does not depend on the vocabulary
        setattr(init.limits, name, getattr(init.limits, name) // SHARE)
    return init


class Matcher:
    """One grammar of llguidance and what was read under it; use it as a context manager.

    Args:
        lark: The grammar, without the engine's `%llguidance` line or with it.
    """

    def __init__(self, lark: str) -> None:
        self._library = _library()
        self._matcher = self._library.llg_new_matcher(ctypes.byref(_start()), b"lark", lark.encode())

    def __enter__(self) -> "Matcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._library.llg_free_matcher(self._matcher)

    @property
    def error(self) -> str | None:
        """What is wrong with the grammar, in llguidance's words; None where it can be followed."""
        said = self._library.llg_matcher_get_error(self._matcher)
        return None if said is None else said.decode("utf-8", "replace")

    def begins(self) -> bool:
        """Whether anything can be written under it: what may come first is worked out, as the engine will have to."""
        return bool(self._library.llg_matcher_compute_mask(self._matcher) == 0)

    def allowed(self) -> list[int]:
        """Return the bytes that may come next."""
        words = self._library.llg_matcher_get_mask(self._matcher)
        return [byte for byte in range(BYTES) if words[byte // 32] >> (byte % 32) & 1]

    def walk(self, steps: int, seed: int) -> bool:
        """Write bytes that are allowed, some way; tell whether the grammar could be followed so far."""
        for step in range(steps):
            if not self.begins():
                return False
            choices = self.allowed()
            if not choices:
                return True
            seed = (seed * 1103515245 + 12345) % (1 << 31)
            letters = [byte for byte in choices if byte not in b'"\\']  # stay inside of texts, at first
            among = letters if letters and step % 8 else choices
            if self._library.llg_matcher_consume_token(self._matcher, among[(seed >> 8) % len(among)]) != 0:
                return False
        return True

    def accepts(self, data: bytes) -> bool:
        """Read a text; tell whether it is one that the grammar allows, from its start to its end."""
        for byte in data:
            if not self.begins():
                return False
            mask = self._library.llg_matcher_get_mask(self._matcher)
            if not mask[byte // 32] >> (byte % 32) & 1:
                return False
            if self._library.llg_matcher_consume_token(self._matcher, byte) != 0:
                return False
        return bool(self._library.llg_matcher_is_accepting(self._matcher))


def lark_error(lark: str) -> str | None:
    """Return why the engine could not follow a grammar of llguidance's; None where it can.

    Some are too costly only once something was written, and then the engine drops them: so a few ways are gone.
    """
    for seed in range(WALKS):
        with Matcher(lark) as matcher:
            if matcher.error is not None:
                return matcher.error
            if not matcher.walk(STEPS, seed):
                return "it is too costly to follow"
    return None


def gbnf_error(grammar: str) -> str | None:
    """Return why the engine could not follow a grammar of its own language; None where it can."""
    library = _library()
    sampler = library.llama_sampler_init_grammar(None, grammar.encode(), b"root")
    if not sampler:
        return "it is not GBNF with a rule named root, or a rule begins with itself"
    library.llama_sampler_free(sampler)
    return None
