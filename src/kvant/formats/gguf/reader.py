"""Read GGUF models: one file or a set of shards, mapped, with tensors that are views of the map."""

from pathlib import Path

from kvant.errors import FormatError, UnsupportedFormatError
from kvant.formats.bounds import check_metadata
from kvant.formats.gguf import spec
from kvant.formats.gguf.header import Header, read_header
from kvant.formats.mapped import mapped_tensor
from kvant.model import Model
from kvant.tensors import Tensor

_AGAIN = "Download the shards again."


def read_gguf(path: Path) -> Model:
    """Open a GGUF model; any shard of a split one names the whole.

    Opening reads the header alone; tensors are mapped, and their rows are views of the map. The `split.*` keys are left
    out of the metadata: they describe files, not the model.

    Raises:
        FormatError: A file is missing, damaged, or contradicts the other shards, or a hyperparameter is out of bounds.
        UnsupportedFormatError: A version, byte order or type that is not read here.
        LimitError: A count or length above the limits in `spec`.
    """
    path = Path(path)
    header = read_header(path)
    count = _split_number(path, header, spec.KEY_SPLIT_COUNT, default=0)
    shards = [(path, header)] if count <= 1 else _read_shards(path, header, count)
    tensors: dict[str, Tensor] = {}
    for shard_path, shard in shards:
        for stored in shard.tensors:
            if stored.name in tensors:
                raise FormatError(f"{shard_path}: tensor {stored.name!r} is in another shard too. {_AGAIN}")
            tensors[stored.name] = mapped_tensor(
                shard.data, stored.name, stored.shape, stored.block_type, stored.offset
            )
    _check_total(shards, len(tensors))
    metadata = {key: value for key, value in shards[0][1].metadata.items() if key not in spec.SPLIT_KEYS}
    check_metadata(metadata, shards[0][0])
    return Model(metadata=metadata, tensors=tensors, path=path, files=tuple(p for p, _ in shards))


def shard_paths(path: Path, count: int) -> list[Path]:
    """Paths of a split model's shards, as upstream names them: `<stem>-00001-of-00003.gguf`."""
    return [path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def files_of(path: Path) -> tuple[Path, ...]:
    """Every file that an engine opens when it is given one, by its name alone: the file, or all shards there are."""
    match = spec.SHARD_NAME.fullmatch(path.name)
    count = int(match["count"]) if match else 0
    stem = path.with_name(match["stem"] + ".gguf") if match else path
    return (path, *(shard for shard in shard_paths(stem, count) if shard != path and shard.is_file()))


def _read_shards(path: Path, header: Header, count: int) -> list[tuple[Path, Header]]:
    """Read every shard of the set that `path` belongs to, and check each one's place in it."""
    match = spec.SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{path}: is one of {count} shards but not named like one. "
            f"Name them <model>-00001-of-{count:05d}.gguf and so on."
        )
    paths = shard_paths(path.with_name(match["stem"] + ".gguf"), count)
    for number, shard_path in enumerate(paths, 1):
        if not shard_path.is_file():
            raise FormatError(f"{shard_path}: shard {number} of {count} is missing. Put it beside the others.")
    shards = [(p, header if p == path else read_header(p)) for p in paths]
    architecture = shards[0][1].metadata.get(spec.KEY_ARCHITECTURE)
    for number, (shard_path, shard) in enumerate(shards):
        found = tuple(_split_number(shard_path, shard, key) for key in (spec.KEY_SPLIT_NO, spec.KEY_SPLIT_COUNT))
        if found != (number, count):
            raise FormatError(
                f"{shard_path}: says it is shard {found[0] + 1} of {found[1]}, its name says {number + 1} of {count}. "
                "Download the shards again."
            )
        if shard.metadata.get(spec.KEY_ARCHITECTURE, architecture) != architecture:
            raise FormatError(f"{shard_path}: its architecture differs from the first shard's. {_AGAIN}")
    return shards


def _split_number(path: Path, header: Header, key: str, default: int = -1) -> int:
    value = header.metadata.get(key, None)
    if value is None:
        return default
    if isinstance(value.value, bool) or not isinstance(value.value, int) or not 0 <= value.value <= spec.MAX_TENSORS:
        raise FormatError(f"{path}: {key} is not a count. {_AGAIN}")
    if key == spec.KEY_SPLIT_COUNT and value.value > spec.MAX_SHARDS:
        raise UnsupportedFormatError(f"{path}: {value.value} shards are above {spec.MAX_SHARDS}. Merge some of them.")
    return value.value


def _check_total(shards: list[tuple[Path, Header]], n_tensors: int) -> None:
    if len(shards) == 1:
        return
    for path, header in shards:
        total = _split_number(path, header, spec.KEY_SPLIT_TENSORS, default=n_tensors)
        if total != n_tensors:
            raise FormatError(
                f"{path}: {spec.KEY_SPLIT_TENSORS} says {total} but the shards hold {n_tensors}. {_AGAIN}"
            )
