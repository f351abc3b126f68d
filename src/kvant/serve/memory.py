"""How much memory a worker will take, before it is started."""

import platform

from kvant.devices.limits import memory
from kvant.devices.memory import BATCH_TOKENS, predict_ram, repacked_bytes
from kvant.formats.gguf.reader import read_gguf
from kvant.model import Model
from kvant.serve.engines.base import Start
from kvant.serve.extent import Extent
from kvant.serve.library import ModelFile
from kvant.serve.settings import Settings

UNKNOWN_MACHINE_BYTES = 4 << 30
# Address space is taken by the file, by libraries, by every thread's stack and heap; only a part is ever resident.
ADDRESS_SPACE_FACTOR, ADDRESS_SPACE_BYTES, THREAD_BYTES = 2, 3 << 30, 16 << 20
HTTP_THREADS_SPARE, FILES_SPARE = 8, 128


def limit_bytes(settings: Settings) -> int:
    """Return the memory that all models together may take: as set, or what is free now."""
    if settings.max_ram_bytes is not None:
        return settings.max_ram_bytes
    found = memory()
    return found.available_bytes if found else UNKNOWN_MACHINE_BYTES


def predicted_bytes(file: ModelFile, extent: Extent, settings: Settings) -> int:
    """Return the predicted resident memory of a worker.

    Args:
        file: The model.
        extent: Context of one request, and the longest text that is read at once.
        settings: For how many requests at a time, and whether with a draft model.

    Raises:
        FormatError: A file is damaged.
    """
    cells = extent.context * settings.parallel
    batch = _batch(file, extent) or BATCH_TOKENS
    total = _predicted(read_gguf(file.path), file.size_bytes, cells, batch) + settings.prompt_cache_bytes
    if settings.speculate == "draft" and settings.draft is not None:
        total += _predicted(read_gguf(settings.draft), settings.draft.stat().st_size, cells, BATCH_TOKENS)
    return total


def _batch(file: ModelFile, extent: Extent) -> int:
    """Return the tokens that an engine must read at once; 0 for its own choice; for vectors, whole texts."""
    return extent.context if makes_vectors(file) else extent.batch


def makes_vectors(file: ModelFile) -> bool:
    """Whether a model makes vectors of texts and nothing else."""
    return file.capabilities == ["embedding"]


def _predicted(model: Model, size_bytes: int, cells: int, batch: int) -> int:
    types = {name: tensor.block_type for name, tensor in model.tensors.items()}
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    repacked = repacked_bytes(types, shapes, platform.machine())
    return predict_ram(model, size_bytes, cells, repacked=repacked, batch=batch).total_bytes


def start_message(file: ModelFile, extent: Extent, predicted: int, settings: Settings) -> Start:
    """Return what a worker for a model is told."""
    http_threads = settings.parallel + HTTP_THREADS_SPARE
    threads = http_threads + (settings.threads or 64)
    return Start(
        path=str(file.path), name=file.name, api_key="", context=extent.context, batch=_batch(file, extent),
        parallel=settings.parallel,
        threads=settings.threads, http_threads=http_threads,
        embedding=makes_vectors(file),
        template=file.settings.template, speculate=settings.speculate,
        draft=str(settings.draft) if settings.draft else None,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        address_space_bytes=ADDRESS_SPACE_FACTOR * predicted + ADDRESS_SPACE_BYTES + threads * THREAD_BYTES,
        open_files=FILES_SPARE + 4 * http_threads,
    )  # fmt: skip
