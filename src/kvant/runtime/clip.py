"""A projector in llama.cpp: whether the engine loads it. Its hyperparameters, names and shapes are read, no weights.

The wheel exports the functions of `tools/mtmd` as it does llama.cpp's, those of `clip` under their C++ names. It is the
server that gives a projector to a model (`server/llamacpp.py`); here it is only opened.

Source: llama.cpp `tools/mtmd/clip.h` (`clip_context_params`, `clip_init_result`, `clip_init`), b11549.
"""

import ctypes as c
import functools
from pathlib import Path

from kvant.errors import EngineError
from kvant.runtime import capi

_INIT, _FREE = "_Z9clip_initPKc19clip_context_params", "_Z9clip_freeP8clip_ctx"
_AUTO = -1


class ClipParams(c.Structure):
    """`clip_context_params`, 80 bytes."""

    _fields_ = (
        ("use_gpu", c.c_bool), ("device", c.c_void_p), ("flash_attn_type", c.c_int), ("image_min_tokens", c.c_int),
        ("image_max_tokens", c.c_int), ("warmup", c.c_bool), ("cb_eval", c.c_void_p), ("cb_eval_user_data", c.c_void_p),
        ("no_alloc", c.c_bool), ("progress_callback", c.c_void_p), ("progress_callback_user_data", c.c_void_p),
    )  # fmt: skip


class ClipContexts(c.Structure):
    """`clip_init_result`: for pictures, for sounds, and for making sounds."""

    _fields_ = (("vision", c.c_void_p), ("audio", c.c_void_p), ("speech", c.c_void_p))


def check(path: Path) -> tuple[bool, bool]:
    """Load a projector but for its weights' values, and free it.

    Returns:
        Whether it takes pictures, and sounds.

    Raises:
        EngineError: The engine does not load it.
    """
    library = _library()
    capi.clear_log()
    made = getattr(library, _INIT)(
        str(path).encode(),
        ClipParams(flash_attn_type=_AUTO, image_min_tokens=_AUTO, image_max_tokens=_AUTO, no_alloc=True),
    )
    found = [context for context in (made.vision, made.audio, made.speech) if context]
    for context in found:
        getattr(library, _FREE)(context)
    if not found:
        said = capi.log_tail(1).rpartition(f"{path}': ")[2].partition(": ")
        raise EngineError(
            f"{path}: llama.cpp cannot load this projector ({said[2] or said[0]}). Check it with: kvant inspect"
        )
    return bool(made.vision), bool(made.audio)


@functools.cache
def _library() -> c.CDLL:
    library = capi.load()
    try:
        init, free = getattr(library, _INIT), getattr(library, _FREE)
        silence = library.mtmd_log_set
    except AttributeError as error:
        raise EngineError(
            f"{capi.ENGINE}: exports no functions for projectors ({error}). Reinstall {capi.ENGINE}=={capi.VERSION}."
        ) from error
    init.restype, init.argtypes = ClipContexts, (c.c_char_p, ClipParams)
    free.restype, free.argtypes = None, (c.c_void_p,)
    silence.restype, silence.argtypes = None, (capi.LogCallback, c.c_void_p)
    silence(capi.keep_log, None)
    return library
