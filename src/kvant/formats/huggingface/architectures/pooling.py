"""What becomes of the states of all tokens in a model that makes embeddings, as sentence-transformers stores it.

`modules.json` lists the steps; the pooling's folder says which one, and folders of dense layers hold matrices.

Source: llama.cpp 0.3.36 `conversion/base.py` `_try_set_pooling_type`, gguf-py `PoolingType`.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.base import member
from kvant.formats.huggingface.config import Config, read_document, read_json, shown
from kvant.metadata import Value, u32

MODULES = "modules.json"
POOLED = frozenset({"Transformer", "Pooling", "Normalize"})
"""Steps of an embedding: states, pooling, and unit length, which engines give every embedding."""

MEAN, CLS, LAST = 1, 2, 3
_FLAGS: Mapping[str, int] = MappingProxyType(
    {"pooling_mode_mean_tokens": MEAN, "pooling_mode_cls_token": CLS, "pooling_mode_lasttoken": LAST}
)
_NAMES: Mapping[str, int] = MappingProxyType({"mean": MEAN, "cls": CLS, "lasttoken": LAST})


def pooling(config: Config) -> dict[str, Value]:
    """Return the kind of pooling; nothing of a model that says none.

    Raises:
        UnsupportedModelError: It is none that llama.cpp has.
    """
    for folder in folders(config, "Pooling"):
        entries = read_json(folder / "config.json")
        found = next((kind for flag, kind in _FLAGS.items() if entries.get(flag)), None)
        found = found or _NAMES.get(str(entries.get("pooling_mode")))
        if found is None:
            raise UnsupportedModelError(
                f"{folder / 'config.json'}: its pooling is none of {', '.join(_NAMES)}, which are those that llama.cpp "
                f"has. Such a model cannot be stored as GGUF."
            )
        return {"pooling_type": u32(found)}
    return {}


def module_remarks(config: Config, read: Collection[str]) -> Iterator[str]:
    """Say which steps of a model's `modules.json` are not in what is made of it; `read` are those that are."""
    path = config.path.parent / MODULES
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in _modules(path)]
    left_out = [kind for kind in kinds if kind not in read]
    if left_out:
        yield f"{path}: its {', '.join(left_out)} is not in what is made of it: embeddings are those without."


def folders(config: Config, kind: str) -> Iterator[Path]:
    """Yield the folders of a model's modules of a kind, in order: `Pooling`, `Dense`.

    Raises:
        FormatError: `modules.json` is no list of modules, or one of them lies elsewhere.
    """
    for module in _modules(config.path.parent / MODULES):
        if str(module.get("type", "")).endswith(kind):
            name = str(module.get("path", ""))
            folder = config.path.parent / name
            if Path(name).name != name or folder.is_symlink():
                raise FormatError(
                    f"{config.path.parent / MODULES}: path {shown(name)} is no folder beside it. Correct it."
                )
            yield member(folder, "config.json").parent


def _modules(path: Path) -> list[Mapping[str, Any]]:
    found = read_document(path) if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise FormatError(f"{path}: holds {shown(found)}, not a list of modules. Download the file again.")
    return found
