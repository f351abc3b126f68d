"""The C interface of llama.cpp as the xllamacpp wheel exports it: structs, functions, and the check that they fit.

The wheel is a Python extension with one shared object, which on Linux and macOS also exports the `llama_*` symbols.
The structs below are those of llama.cpp b11549. They are read through ctypes, so a different layout would corrupt
memory: the version is compared first, and then the default parameters that the library returns are compared field by
field with the values they are known to have.

Source: llama.cpp `include/llama.h` (structs), `llama_model_default_params` and `llama_context_default_params` (values).
"""

import ctypes as c
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from kvant.errors import EngineError

ENGINE = "xllamacpp"
VERSION = "2026.10.11549"
LLAMA_CPP_BUILD = "b11549"
LOG_LINES = 60

# GNU OpenMP lets a thread that waits for others spin for milliseconds. Where another program wants the same core that
# costs up to 5 times the wall time (measured on 2 cores); 10,000 turns keep the speed of an idle machine without it.
SPIN_VARIABLE, SPIN_TURNS = "GOMP_SPINCOUNT", "10000"

TYPE_F16 = 1
FLASH_ATTENTION_OFF, FLASH_ATTENTION_ON = 0, 1
LOAD_READ, LOAD_MAP = 0, 1
POOLING_NONE, POOLING_MEAN, POOLING_RANK = 0, 1, 4


class ModelParams(c.Structure):
    """`llama_model_params`, 80 bytes."""

    _fields_ = (
        ("devices", c.c_void_p), ("tensor_buft_overrides", c.c_void_p), ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int32), ("load_mode", c.c_int32), ("lazy_mode", c.c_int32), ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p), ("progress_callback", c.c_void_p), ("progress_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p), ("vocab_only", c.c_bool), ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool), ("no_host", c.c_bool), ("no_alloc", c.c_bool), ("load_mtp", c.c_bool),
    )  # fmt: skip


class ContextParams(c.Structure):
    """`llama_context_params`, 168 bytes."""

    _fields_ = (
        ("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32), ("n_outputs_max", c.c_uint32), ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32), ("n_threads_batch", c.c_int32), ("ctx_type", c.c_int32),
        ("rope_scaling_type", c.c_int32), ("pooling_type", c.c_int32), ("attention_type", c.c_int32),
        ("flash_attn_type", c.c_int32), ("rope_freq_base", c.c_float), ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float), ("yarn_attn_factor", c.c_float), ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float), ("yarn_orig_ctx", c.c_uint32), ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p), ("cb_eval_user_data", c.c_void_p), ("type_k", c.c_int32), ("type_v", c.c_int32),
        ("moe_cache_size", c.c_size_t), ("abort_callback", c.c_void_p), ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool), ("offload_kqv", c.c_bool), ("no_perf", c.c_bool), ("op_offload", c.c_bool),
        ("swa_full", c.c_bool), ("kv_unified", c.c_bool), ("samplers", c.c_void_p), ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    )  # fmt: skip


class Batch(c.Structure):
    """`llama_batch`, 56 bytes."""

    _fields_ = (
        ("n_tokens", c.c_int32), ("token", c.POINTER(c.c_int32)), ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)), ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))), ("logits", c.POINTER(c.c_int8)),
    )  # fmt: skip


# What the library is known to return; every field not named is zero.
MODEL_DEFAULTS: Mapping[str, object] = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True,
}  # fmt: skip
CONTEXT_DEFAULTS: Mapping[str, object] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "n_threads": 4,
    "n_threads_batch": 4, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1,
    "yarn_ext_factor": -1.0, "yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0, "type_k": TYPE_F16, "type_v": TYPE_F16, "offload_kqv": True, "no_perf": True,
    "op_offload": True, "swa_full": True,
}  # fmt: skip

LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_log: deque[str] = deque(maxlen=LOG_LINES)


def _append_log(_level: int, text: bytes, _user_data: object) -> None:
    """Keep what the engine says; a line may come in several pieces."""
    piece = text.decode("utf-8", errors="replace")
    if _log and not _log[-1].endswith("\n"):
        _log[-1] += piece
    else:
        _log.append(piece)


keep_log = LogCallback(_append_log)


def log_tail(lines: int = 3) -> str:
    """Return the engine's last lines, for an error text."""
    found = [line.strip() for line in _log if line.strip(" .\n")]
    return " | ".join(found[-lines:]) or "it said nothing"


def clear_log() -> None:
    """Forget what the engine said so far."""
    _log.clear()


def library_path() -> Path:
    """Find the wheel's shared object without importing it.

    Raises:
        EngineError: The wheel is absent, or exports no C symbols on this system.
    """
    spec = importlib.util.find_spec(ENGINE)
    if spec is None or spec.origin is None:
        raise EngineError(f"{ENGINE}: is not installed. Install it with: pip install {ENGINE}=={VERSION}")
    if sys.platform == "win32":
        raise EngineError(
            f"{ENGINE}: its Windows build exports no C functions, so the logits of all positions cannot be read. "
            "Run kvant under WSL, where it can."
        )
    found = sorted(Path(spec.origin).parent.glob(f"{ENGINE}*.so"))
    if not found:
        raise EngineError(f"{ENGINE}: no shared object beside {spec.origin}. Reinstall {ENGINE}=={VERSION}.")
    return found[0]


def check_version() -> None:
    """Refuse any version but the one whose structs are declared here.

    Raises:
        EngineError: Another version is installed.
    """
    installed = importlib.metadata.version(ENGINE)
    if installed != VERSION:
        raise EngineError(
            f"{ENGINE}: version {installed} is installed, but its C structs are known for {VERSION} only. "
            f"Install it with: pip install {ENGINE}=={VERSION}"
        )


def check_defaults(params: c.Structure, expected: Mapping[str, object], name: str) -> None:
    """Compare default parameters with the values they must have if the declared layout is right.

    Raises:
        EngineError: A field differs.
    """
    for field, *_ in params._fields_:
        found = getattr(params, field) or 0
        if found != expected.get(field, 0):
            raise EngineError(
                f"{ENGINE}: {name}.{field} is {found} by default, not {expected.get(field, 0)}: the struct layout is "
                f"not that of {LLAMA_CPP_BUILD}. Reinstall {ENGINE}=={VERSION}."
            )


@functools.cache
def load() -> c.CDLL:
    """Load the engine once per process, check it, and silence it into a buffer.

    Raises:
        EngineError: It is absent, of another version, or its structs differ from the declared ones.
    """
    path = library_path()
    check_version()
    os.environ.setdefault(SPIN_VARIABLE, SPIN_TURNS)
    try:
        library = c.CDLL(str(path))
        _declare(library)
    except (OSError, AttributeError) as error:
        raise EngineError(f"{path}: cannot be used as a C library: {error}. Reinstall {ENGINE}=={VERSION}.") from error
    check_defaults(library.llama_model_default_params(), MODEL_DEFAULTS, "llama_model_params")
    check_defaults(library.llama_context_default_params(), CONTEXT_DEFAULTS, "llama_context_params")
    library.llama_log_set(keep_log, None)
    library.llama_backend_init()
    return library


def _declare(library: c.CDLL) -> None:
    """Give every function used its types."""
    pointer, text, i32, flag = c.c_void_p, c.c_char_p, c.c_int32, c.c_bool
    tokens = c.POINTER(c.c_int32)
    signatures: Mapping[str, tuple[object, tuple[object, ...]]] = {
        "llama_model_default_params": (ModelParams, ()),
        "llama_context_default_params": (ContextParams, ()),
        "llama_backend_init": (None, ()),
        "llama_log_set": (None, (LogCallback, pointer)),
        "llama_model_load_from_file": (pointer, (text, ModelParams)),
        "llama_model_free": (None, (pointer,)),
        "llama_init_from_model": (pointer, (pointer, ContextParams)),
        "llama_free": (None, (pointer,)),
        "llama_model_get_vocab": (pointer, (pointer,)),
        "llama_model_n_params": (c.c_uint64, (pointer,)),
        "llama_model_size": (c.c_uint64, (pointer,)),
        "llama_model_n_ctx_train": (i32, (pointer,)),
        "llama_model_chat_template": (text, (pointer, text)),
        "llama_vocab_n_tokens": (i32, (pointer,)),
        "llama_vocab_get_add_bos": (flag, (pointer,)),
        "llama_vocab_get_add_eos": (flag, (pointer,)),
        "llama_vocab_get_add_sep": (flag, (pointer,)),
        "llama_vocab_bos": (i32, (pointer,)),
        "llama_vocab_eos": (i32, (pointer,)),
        "llama_vocab_sep": (i32, (pointer,)),
        "llama_vocab_is_eog": (flag, (pointer, i32)),
        "llama_tokenize": (i32, (pointer, text, i32, tokens, i32, flag, flag)),
        "llama_token_to_piece": (i32, (pointer, i32, text, i32, i32, flag)),
        "llama_get_memory": (pointer, (pointer,)),
        "llama_memory_clear": (None, (pointer, flag)),
        "llama_memory_seq_rm": (flag, (pointer, i32, i32, i32)),
        "llama_decode": (i32, (pointer, Batch)),
        "llama_get_logits": (c.POINTER(c.c_float), (pointer,)),
        "llama_get_logits_ith": (c.POINTER(c.c_float), (pointer, i32)),
        "llama_model_has_encoder": (flag, (pointer,)),
        "llama_model_has_decoder": (flag, (pointer,)),
        "llama_model_n_embd_out": (i32, (pointer,)),
        "llama_model_n_cls_out": (c.c_uint32, (pointer,)),
        "llama_pooling_type": (i32, (pointer,)),
        "llama_get_embeddings_seq": (c.POINTER(c.c_float), (pointer, i32)),
        "llama_print_system_info": (text, ()),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
