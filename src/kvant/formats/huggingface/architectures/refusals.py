"""What several families refuse because llama.cpp computes it otherwise."""

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.config import Config, shown

MAX_STEP = 100.0
"""Longer than time steps of a state-space layer get: published models limit them to 9999, or not at all."""


def check_derived_head(config: Config, architecture: str) -> None:
    """Refuse heads of another length than hidden size over heads.

    Raises:
        UnsupportedModelError: They have another length.
    """
    derived = config.integer("hidden_size") // config.integer("num_attention_heads")
    if config.head_dim != derived:
        raise UnsupportedModelError(
            f"{config.path}: head_dim is {config.head_dim}, but llama.cpp's {architecture} has heads of hidden size "
            f"over heads, {derived}. Such a model cannot be stored as GGUF."
        )


def check_values(config: Config, architecture: str, **wanted: object) -> None:
    """Refuse entries of config.json that have another value than the only one that llama.cpp computes.

    Args:
        config: The configuration; an entry that is absent is as good as right.
        architecture: llama.cpp's name.
        wanted: The value by entry; False and 0 are as good as each other.

    Raises:
        UnsupportedModelError: An entry has another value.
    """
    for key, value in wanted.items():
        found = config.get(key)
        if found is not None and found != value:
            raise UnsupportedModelError(
                f"{config.path}: {key} is {shown(found)}, but llama.cpp's {architecture} computes {value!r} only. "
                f"Such a model cannot be stored as GGUF."
            )


def check_steps(config: Config, architecture: str) -> None:
    """Refuse limits of a state-space layer's time steps: llama.cpp has none, and steps stay far below the highest.

    Raises:
        UnsupportedModelError: There are limits that steps can reach.
    """
    limits = config.items("time_step_limit") or [0.0, MAX_STEP]
    if len(limits) != 2 or limits[0] != 0 or not isinstance(limits[1], (int, float)) or limits[1] < MAX_STEP:
        raise UnsupportedModelError(
            f"{config.path}: time_step_limit is {shown(limits)}, but llama.cpp's {architecture} does not limit time "
            f"steps. Such a model cannot be stored as GGUF."
        )


def check_tied(config: Config, architecture: str, *, wanted: bool) -> None:
    """Refuse a head that is the embedding, or one of its own, where llama.cpp loads the other only.

    Raises:
        UnsupportedModelError: It is the other one.
    """
    if config.flag("tie_word_embeddings") != wanted:
        raise UnsupportedModelError(
            f"{config.path}: tie_word_embeddings is {str(not wanted).lower()}, but llama.cpp's {architecture} loads "
            f"{'no head of its own' if wanted else 'a head of its own only'}. Such a model cannot be stored as GGUF."
        )
