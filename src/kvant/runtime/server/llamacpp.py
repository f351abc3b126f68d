"""llama.cpp's own server, from the wheel, as a program: `python -m kvant.runtime.server.llamacpp`.

Reads a `Start` from standard input, confines itself, loads the model, listens on its socket, answers a `Ready` on
standard output, and ends when standard input does. The engine's log goes to standard error.

A template that the engine refuses does not keep a model from being loaded: its own is used, and `Ready` says so.
"""

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from kvant.runtime.server.confine import confine
from kvant.runtime.server.start import Ready, Start

AGAIN = "again.sock"


def parameters(start: Start) -> Any:
    """Return the engine's parameters, `xllamacpp.CommonParams`; nothing of it writes files or reaches a network."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = start.path
    if start.template is not None:
        params.chat_template = start.template
    if start.projector is not None:
        params.mmproj.path = start.projector
    params.model_alias = {start.name}
    params.hostnames, params.port, params.api_keys = [start.socket or "127.0.0.1"], 0, [start.api_key]
    params.n_ctx, params.n_parallel = start.context * start.parallel, start.parallel
    params.n_threads_http = start.http_threads
    params.endpoint_props, params.endpoint_slots, params.endpoint_metrics = False, True, True
    params.ui, params.use_jinja, params.fit_params, params.ctx_shift = False, True, False, False
    params.cache_ram_mib = start.prompt_cache_bytes >> 20
    params.cache_idle_slots = start.prompt_cache_bytes > 0
    if start.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = start.threads
    params.embedding = True
    if start.batch:  # a vector is made of a text that is read in one batch
        params.n_batch = params.n_ubatch = start.batch
    if start.ranking:  # converters do not write it for every reranker
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    elif not start.embedding:  # one that makes vectors has its own pooling
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    _speculate(params, start)
    return params


def _speculate(params: Any, start: Start) -> None:
    import xllamacpp

    kinds = xllamacpp.common_speculative_type
    if start.speculate == "ngram":
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    elif start.speculate == "draft" and start.draft:
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        params.speculative.draft.mparams.path = start.draft


def main() -> None:
    """Serve one model until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the engine prints is its log
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=Start)
    held = confine(
        address_space_bytes=start.address_space_bytes, open_files=start.open_files, parent=start.parent,
        reads=start.files, sockets=[str(Path(start.socket).parent)] if start.socket else [],
    )  # fmt: skip
    import xllamacpp

    try:
        try:
            server = xllamacpp.Server(parameters(start))
        except RuntimeError:
            if start.template is None:
                raise
            # The first server may have left its socket, and nothing may be deleted here.
            again = str(Path(start.socket).with_name(AGAIN)) if start.socket else ""
            start = msgspec.structs.replace(start, template=None, socket=again)
            server = xllamacpp.Server(parameters(start))
    except (RuntimeError, ValueError, MemoryError) as error:
        sys.stderr.write(f"kvant-engine: {error or type(error).__name__}\n")
        sys.stderr.flush()
        os._exit(1)
    address = server.listening_address
    port = (address.decode() if isinstance(address, bytes) else address).rpartition(":")[2]
    ready = Ready(address=start.socket or int(port), confined=held, template=start.template is not None)
    answers.write(msgspec.json.encode(ready) + b"\n")
    answers.close()
    sys.stdin.buffer.read()
    os._exit(0)  # its threads may be in the middle of a batch; nothing of them is worth waiting for


if __name__ == "__main__":
    main()
