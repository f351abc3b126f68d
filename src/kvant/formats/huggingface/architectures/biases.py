"""Biases as transformers has them: a tensor alone adds nothing, the class or config.json must ask for it."""

from collections.abc import Iterable

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.config import Config

_SHOWN = 3


def unused_biases(names: Iterable[str], family: Family, config: Config) -> tuple[frozenset[str], tuple[str, ...]]:
    """Find the biases that transformers does not load.

    Args:
        names: Tensors of the model, as transformers names them.
        family: Its family.
        config: Its configuration.

    Returns:
        Their names, and a sentence that says so, if there are any.

    Raises:
        FormatError: A bias that the configuration asks for is not there.
        UnsupportedModelError: The engine does not add a bias that transformers adds.
    """
    found = {name: family.canonical_name(name, config) for name in names if name.endswith(".bias")}
    used = family.biases(config)
    stored = {name for name in found.values() if name is not None and family.stem(name) in used}
    beyond = sorted(used - family.engine_biases)
    if beyond:
        flags = [flag for flag, stems in family.bias_flags.items() if config.flag(flag) and set(stems) & set(beyond)]
        raise UnsupportedModelError(
            f"{config.path}: {' and '.join(flags)} asks for biases of {', '.join(beyond)}, which llama.cpp's "
            f"{family.architecture} does not add. Such a model cannot be stored as GGUF."
        )
    wanted = {
        f"blk.{layer}.{stem}.bias"
        for layer in range(config.n_layers)
        for stem in used & set(family.required_in(config, layer))
    }
    missing = sorted(wanted - stored)
    if missing:
        raise FormatError(
            f"{config.path.parent}: {len(missing)} biases are missing, first {family.transformers_name(missing[0])}. "
            f"Download all weight files, or correct {' and '.join(family.bias_flags) or 'architectures'} in "
            f"config.json."
        )
    unused = sorted(name for name, ours in found.items() if ours is not None and ours not in stored)
    if not unused:
        return frozenset(), ()
    asks = f"{' and '.join(family.bias_flags)} ask for none" if family.bias_flags else "the class has none"
    names_shown = ", ".join(unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
    return frozenset(unused), (
        f"{config.path.parent}: {len(unused)} biases ({names_shown}) are left out as transformers leaves them out: "
        f"{asks}. Where the model was trained with them, say so in config.json.",
    )
