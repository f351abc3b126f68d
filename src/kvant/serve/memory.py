"""How much memory a worker will take, before it is started."""

import platform
from collections.abc import Callable

from kvant.devices.cache import BATCH_TOKENS
from kvant.devices.limits import cores, memory
from kvant.devices.memory import predict_ram, projector_bytes, repacked_bytes
from kvant.formats.gguf.reader import read_gguf
from kvant.model import Model
from kvant.runtime.server.start import Start
from kvant.serve.extent import Extent
from kvant.serve.library import ModelFile
from kvant.serve.settings import Settings
from kvant.serve.sizing import Predict, Size

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


def prediction(file: ModelFile, settings: Settings) -> Predict:
    """Return what predicts the resident memory of a worker, its projector's too; headers are read here, once.

    Args:
        file: The model.
        settings: Whether with a draft model, and the memory for prompts.

    Raises:
        FormatError: A file is damaged.
    """
    own = _predicted(read_gguf(file.path), file.size_bytes)
    draft = None
    if settings.speculate == "draft" and settings.draft is not None:
        draft = _predicted(read_gguf(settings.draft), settings.draft.stat().st_size)

    seen = file.projector
    eyes = projector_bytes(seen.size_bytes, seen.patches, seen.hidden) if seen and not reads_only(file) else 0

    def total(extent: Extent, parallel: int) -> int:
        cells = extent.context * parallel
        guesses = draft(cells, BATCH_TOKENS) if draft else 0
        return own(cells, _batch(file, extent) or BATCH_TOKENS) + guesses + eyes + settings.prompt_cache_bytes

    return total


def _batch(file: ModelFile, extent: Extent) -> int:
    """Return the tokens that an engine must read at once; 0 for its own choice; for vectors and scores, whole texts."""
    return extent.context if reads_only(file) else extent.batch


def reads_only(file: ModelFile) -> bool:
    """Whether a model makes vectors or scores of texts, which it reads at once, and nothing else."""
    return file.capabilities in (["embedding"], ["rerank"])


def _predicted(model: Model, size_bytes: int) -> Callable[[int, int], int]:
    types = {name: tensor.block_type for name, tensor in model.tensors.items()}
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    repacked = repacked_bytes(types, shapes, platform.machine())
    return lambda cells, batch: predict_ram(model, size_bytes, cells, repacked=repacked, batch=batch).total_bytes


def start_message(file: ModelFile, size: Size, settings: Settings) -> Start:
    """Return what a worker for a model is told."""
    http_threads = size.parallel + HTTP_THREADS_SPARE
    threads = settings.threads or cores()
    projector = None if file.projector is None or reads_only(file) else str(file.projector.path)
    return Start(
        path=str(file.path), name=file.name, api_key="", context=size.extent.context,
        batch=_batch(file, size.extent), parallel=size.parallel,
        threads=threads, http_threads=http_threads,
        embedding=reads_only(file), ranking=file.capabilities == ["rerank"],
        template=file.settings.template, speculate=settings.speculate,
        draft=str(settings.draft) if settings.draft else None, projector=projector,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        address_space_bytes=ADDRESS_SPACE_FACTOR * size.size_bytes + ADDRESS_SPACE_BYTES
        + (threads + http_threads) * THREAD_BYTES,
        open_files=FILES_SPARE + 4 * http_threads,
    )  # fmt: skip
