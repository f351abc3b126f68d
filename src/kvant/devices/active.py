"""What of a model takes part in one generated token: all of a dense one, a few experts of a mixture.

A token reads the rows of embeddings that it looks up, every matrix of attention and of shared experts, and of stacked
experts as many as the router takes. Heads that predict further tokens, which the engine loads and does not run, are
not read. A tied embedding is the output head, too, and read whole.

Sources, llama.cpp b11549: `llama-graph.cpp` (`build_moe_ffn`), `llama-model.cpp` (`LLM_KV_EXPERT_USED_COUNT`).
"""

import math

from kvant.devices.cache import Hyperparameters, layers_run, number, per_layer
from kvant.devices.memory import EMBEDDING, EXPERTS, LOOKED_UP, OUTPUT
from kvant.model import Model
from kvant.tensors import n_weights


def read_share(name: str, shape: tuple[int, ...], model: Hyperparameters, *, is_tied: bool) -> float:
    """Return the share of a tensor that one token reads, 0 to 1.

    Args:
        name: Canonical name.
        shape: Lengths of its axes in NumPy order; experts are stacked along the first,
            or stand alone in checkpoints that are not converted.
        model: For the experts that are used, and the layers that are run.
        is_tied: The embedding is the output head, too.
    """
    if name in LOOKED_UP and not (name == EMBEDDING and is_tied):
        return 1 / max(1, math.prod(shape[:-1]))
    layer = _layer(name)
    if layer is not None and layer >= layers_run(model) > 0:
        return 0.0
    if EXPERTS in name and len(shape) > 1:
        used = per_layer(model, "expert_used_count", 0)
        n_used = used[layer] if layer is not None and layer < len(used) else 0
        n_experts = shape[0] if len(shape) == 3 else number(model, "expert_count", 1)
        return min(1.0, n_used / max(1, n_experts)) if n_used > 0 else 1.0
    return 1.0


def active_weights(model: Model) -> int:
    """Return how many weights one generated token reads."""
    is_tied = OUTPUT not in model.tensors
    read = (n_weights(t) * read_share(name, t.shape, model, is_tied=is_tied) for name, t in model.tensors.items())
    return round(math.fsum(read))


def _layer(name: str) -> int | None:
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if first == "blk" and number.isascii() and number.isdigit() and len(number) < 6 else None
