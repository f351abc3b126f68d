"""What a worker is told to do, and the engines there are: one table."""

import msgspec


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's process reads from standard input, one line of JSON, before it does anything.

    Attributes:
        path: The model's file.
        files: All files it reads, shards and draft included.
        socket: The Unix socket to listen on; a free port of 127.0.0.1 if empty.
        name: What its answers call it.
        api_key: What every request to it must bear.
        context: Tokens of context of one slot.
        batch: Tokens that are read at once, for vectors of long texts; 0 for the engine's own choice.
        parallel: Slots: requests answered at a time.
        threads: Threads that compute; 0 for the engine's own choice.
        http_threads: Connections served at a time.
        template: Chat template in place of the file's own.
        embedding: Whether it makes embeddings rather than text.
        ranking: Whether it gives scores of pairs of texts instead.
        speculate: `none`, `ngram` or `draft`.
        draft: The draft model's file.
        projector: File of what makes pictures and sounds into what the model reads.
        prompt_cache_bytes: Memory for prompts whose slot was taken by another one.
        address_space_bytes: Most memory it may map; 0 for any.
        open_files: Most files and connections it may have open.
        parent: Process id of its owner: it ends when that does.
    """

    path: str
    files: tuple[str, ...] = ()
    socket: str = ""
    name: str
    api_key: str
    context: int
    parallel: int
    threads: int
    http_threads: int
    template: str | None = None
    batch: int = 0
    embedding: bool = False
    ranking: bool = False
    speculate: str = "none"
    draft: str | None = None
    projector: str | None = None
    prompt_cache_bytes: int = 0
    address_space_bytes: int = 0
    open_files: int = 1024
    parent: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's process answers on standard output, one line of JSON, once it listens.

    Attributes:
        address: Path of its Unix socket, or port on 127.0.0.1.
        confined: What keeps the process in, for the log: `rlimits`, `seccomp`, ...
        template: Whether the engine took the template it was given; if not, the file's own holds.
    """

    address: str | int
    template: bool = False
    confined: tuple[str, ...] = ()


ENGINES = {
    "llamacpp": "kvant.runtime.server.llamacpp",
}
"""Module of every engine; it is run with `python -m`, reads `Start`, serves llama.cpp's HTTP API, answers `Ready`."""
