"""Read safetensors files, one or sharded, mapped, with tensors that are views of the map."""

from pathlib import Path

from kvant.errors import FormatError, LimitError, UnsupportedFormatError
from kvant.formats.base import member
from kvant.formats.lookalikes import ADAPTER_FILES, PICKLES, from_pickles
from kvant.formats.mapped import mapped_tensor
from kvant.formats.safetensors import spec
from kvant.formats.safetensors.header import parse_object, read_header
from kvant.tensors import LazyTensor

_NOT_WEIGHTS = ("adapter_model", "training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""What the names of pickles begin with that training leaves beside a model."""


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Open one file; tensors come in the order of their bytes.

    Raises:
        FormatError: Not a safetensors file, or damaged. Also its kinds LimitError and UnsupportedFormatError.
    """
    header = read_header(Path(path))
    return {t.name: mapped_tensor(header.data, t.name, t.shape, t.block_type, t.offset) for t in header.tensors}


def read_sharded(directory: Path) -> dict[str, LazyTensor]:
    """Open the weights of a model's directory: its one file if it has that name, else those its index names.

    One file goes before an index that names others, as in transformers (`modeling_utils.py`,
    `_get_resolved_checkpoint_files`): the index is then left over from another version of the model.

    Raises:
        FormatError: No weights, a shard or tensor is missing, or a file is damaged or outside the directory.
    """
    directory = Path(directory)
    if not (directory / spec.SINGLE_NAME).exists() and (directory / spec.INDEX_NAME).exists():
        return _read_index(directory)
    (path,) = weight_files(directory)
    return read_safetensors(path)


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Files that hold the weights `read_sharded` gives.

    Raises:
        FormatError: There are none, or several without an index.
    """
    directory = Path(directory)
    if (directory / spec.SINGLE_NAME).exists():
        return (member(directory, spec.SINGLE_NAME),)
    if (directory / spec.INDEX_NAME).exists():
        return tuple(member(directory, name) for name in sorted(set(_weight_map(directory).values())))
    found = sorted(p.name for p in directory.glob("*" + spec.SUFFIX) if p.name not in ADAPTER_FILES)
    if len(found) == 1:
        return (member(directory, found[0]),)
    if found:
        raise FormatError(f"{directory}: {len(found)} safetensors files but no {spec.INDEX_NAME}. Download that too.")
    raise _no_weights(directory)


def left_over(directory: Path) -> tuple[str, ...]:
    """Say which files of weights are not read although something names them; one sentence each."""
    directory = Path(directory)
    if not (directory / spec.INDEX_NAME).exists():
        return ()
    weight_map = _weight_map(directory)
    if (directory / spec.SINGLE_NAME).exists():
        others = sorted(set(weight_map.values()) - {spec.SINGLE_NAME})
        if not others:
            return ()
        return (
            f"{spec.SINGLE_NAME} is read, as transformers does; {spec.INDEX_NAME} names {len(others)} other files "
            f"(first {others[0]}) and is left over. Delete what is not this model's.",
        )
    held = {name for file in sorted(set(weight_map.values())) for name in read_safetensors(member(directory, file))}
    unnamed = sorted(held - weight_map.keys())
    if not unnamed:
        return ()
    return (
        f"{len(unnamed)} tensors of the shards (first {unnamed[0]}) are not named in {spec.INDEX_NAME} and are left "
        "out.",
    )


def _no_weights(directory: Path) -> FormatError:
    """Say what there is in place of safetensors files."""
    found = sorted(p.name for pattern in PICKLES for p in directory.glob(pattern))
    pickles = [name for name in found if not name.startswith(_NOT_WEIGHTS)]
    if pickles:
        return UnsupportedFormatError(
            f"{directory}: its weights are pickles ({pickles[0]}), which can run code when they are opened. "
            f"{from_pickles(directory, pickles)}"
        )
    others = sorted(p.name for suffix in (".h5", ".msgpack", ".onnx", ".gguf") for p in directory.glob("*" + suffix))
    unfinished = sorted(p.name for p in directory.glob("*.incomplete"))
    there = f", but {(unfinished or others)[0]}" if unfinished or others else ""
    what = "Finish the download of the model's weights." if unfinished else "Download the model's weights as well."
    return FormatError(f"{directory}: holds no safetensors file{there}. {what}")


def _read_index(directory: Path) -> dict[str, LazyTensor]:
    """Open the shards that the index names, each once, and take from each the tensors it is said to hold."""
    weight_map = _weight_map(directory)
    shards = {name: read_safetensors(member(directory, name)) for name in sorted(set(weight_map.values()))}
    tensors: dict[str, LazyTensor] = {}
    for shard_name, shard in shards.items():
        tensors.update((name, tensor) for name, tensor in shard.items() if weight_map.get(name) == shard_name)
    missing = weight_map.keys() - tensors.keys()
    if missing:
        name = min(missing)
        raise FormatError(f"{directory / weight_map[name]}: holds no tensor {name!r}. Download the shards again.")
    return tensors


def _weight_map(directory: Path) -> dict[str, str]:
    """Read `weight_map` of the index: file name by tensor name."""
    path = member(directory, spec.INDEX_NAME)
    size = path.stat().st_size
    if size > spec.MAX_INDEX_BYTES:
        raise LimitError(f"{path}: {size} bytes are above the limit of {spec.MAX_INDEX_BYTES}. Download it again.")
    found = parse_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise FormatError(f"{path}: its weight_map is not an object of file names. Download it again.")
    for name in set(found.values()):
        if not name.endswith(spec.SUFFIX):
            raise FormatError(f"{path}: names {name[:80]!r}, which is no safetensors file. Download it again.")
    return found
