"""Read safetensors files, one or sharded, mapped, with tensors that are views of the map."""

from pathlib import Path

from kvant.errors import FormatError, LimitError
from kvant.formats.base import member
from kvant.formats.mapped import mapped_tensor
from kvant.formats.safetensors import spec
from kvant.formats.safetensors.header import parse_object, read_header
from kvant.tensors import LazyTensor


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Open one file; tensors come in the order of their bytes.

    Raises:
        FormatError: Not a safetensors file, or damaged. Also its kinds LimitError and UnsupportedFormatError.
    """
    header = read_header(Path(path))
    return {t.name: mapped_tensor(header.data, t.name, t.shape, t.block_type, t.offset) for t in header.tensors}


def read_sharded(directory: Path) -> dict[str, LazyTensor]:
    """Open the weights of a model's directory: those its index names, else the one safetensors file there.

    Raises:
        FormatError: No weights, a shard or tensor is missing, or a file is damaged or outside the directory.
    """
    directory = Path(directory)
    if (directory / spec.INDEX_NAME).exists():
        return _read_index(directory)
    if (directory / spec.SINGLE_NAME).exists():
        return read_safetensors(member(directory, spec.SINGLE_NAME))
    found = sorted(p.name for p in directory.glob("*" + spec.SUFFIX))
    if len(found) == 1:
        return read_safetensors(member(directory, found[0]))
    if found:
        raise FormatError(f"{directory}: {len(found)} safetensors files but no {spec.INDEX_NAME}. Download that too.")
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise FormatError(
            f"{directory}: its weights are pickles, which can run code when they are opened. "
            "Download the model's .safetensors files."
        )
    raise FormatError(f"{directory}: holds no safetensors file. Download the model's weights.")


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Files that hold the weights `read_sharded` gives."""
    directory = Path(directory)
    if (directory / spec.INDEX_NAME).exists():
        return tuple(member(directory, name) for name in sorted(set(_weight_map(directory).values())))
    if (directory / spec.SINGLE_NAME).exists():
        return (directory / spec.SINGLE_NAME,)
    return tuple(sorted(directory.glob("*" + spec.SUFFIX)))


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
