"""What llama.cpp multiplies while it runs: the native observer, once the engine's structs are as it reads them.

Its callback and sums are native (native/src/observer.cpp): the engine calls it for every node of its graph.
"""

import ctypes as c
import functools

from kvant.errors import EngineError
from kvant.kernels import _ext, isa
from kvant.runtime import capi

LINEAR, EXPERTS, LOOKUP = "linear", "experts", "lookup"
"""How a weight takes part: one matrix (or one per head), one of many chosen by a router, or rows by their number."""

_OPERATIONS = ("MUL_MAT", "MUL_MAT_ID", "GET_ROWS")
_TYPE_F32, _TYPE_I32 = 0, 26
_MOST_OPERATIONS = 256


class _InitParams(c.Structure):
    """`ggml_init_params`."""

    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


def observer(threads: int) -> "_ext.Observer":
    """Return an observer that computes with so many threads; 0 for one per core.

    Raises:
        EngineError: The engine's tensors are not laid out as the observer reads them.
    """
    return _ext.Observer(*_operations(), isa.level(), threads)


@functools.cache
def _operations() -> tuple[int, int, int, int]:
    """Return the numbers of the operations that are observed, after a look at tensors that the engine made."""
    library = capi.load()
    pointer, i32, i64 = c.c_void_p, c.c_int, c.c_int64
    for name, result, arguments in (
        ("ggml_init", pointer, (_InitParams,)),
        ("ggml_free", None, (pointer,)),
        ("ggml_new_tensor_2d", pointer, (pointer, i32, i64, i64)),
        ("ggml_new_tensor_3d", pointer, (pointer, i32, i64, i64, i64)),
        ("ggml_set_name", pointer, (pointer, c.c_char_p)),
        ("ggml_mul_mat", pointer, (pointer, pointer, pointer)),
        ("ggml_mul_mat_id", pointer, (pointer, pointer, pointer, pointer)),
        ("ggml_get_rows", pointer, (pointer, pointer, pointer)),
        ("ggml_soft_max", pointer, (pointer, pointer)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    context = library.ggml_init(_InitParams(mem_size=1 << 16, no_alloc=False))
    try:
        weight = library.ggml_new_tensor_2d(context, _TYPE_F32, 7, 5)
        experts = library.ggml_new_tensor_3d(context, _TYPE_F32, 7, 5, 3)
        x = library.ggml_new_tensor_2d(context, _TYPE_F32, 7, 2)
        x3 = library.ggml_new_tensor_3d(context, _TYPE_F32, 7, 1, 2)
        ids = library.ggml_new_tensor_2d(context, _TYPE_I32, 2, 2)
        library.ggml_set_name(weight, b"a name")
        products = (
            library.ggml_mul_mat(context, weight, x),
            library.ggml_mul_mat_id(context, experts, x3, ids),
            library.ggml_get_rows(context, weight, _column(library, context)),
        )
        softened = _ext.read_engine_tensor(library.ggml_soft_max(context, x))
        seen = [_ext.read_engine_tensor(product) for product in products]
        known = _ext.read_engine_tensor(weight)
        good = (
            (known["ne"], known["nb"], known["name"], known["type"]) == ([7, 5, 1, 1], [4, 28, 140, 140], "a name", 0)
            and bool(known["data"])
            and seen[0]["src"][:2] == (weight, x)
            and seen[1]["src"] == (experts, x3, ids)
            and seen[2]["src"][0] == weight
            and [s["ne"] for s in seen] == [[5, 2, 1, 1], [5, 2, 2, 1], [7, 2, 1, 1]]
        )
    finally:
        library.ggml_free(context)
    if not good:
        raise EngineError(
            f"{capi.ENGINE}: ggml_tensor is not laid out as in {capi.LLAMA_CPP_BUILD}, so what the engine multiplies "
            f"cannot be read. Reinstall {capi.ENGINE}=={capi.VERSION}."
        )
    return seen[0]["op"], seen[1]["op"], seen[2]["op"], softened["op"]


def _column(library: c.CDLL, context: int) -> int:
    return int(library.ggml_new_tensor_2d(context, _TYPE_I32, 2, 1))
