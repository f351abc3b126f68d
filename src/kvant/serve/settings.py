"""What a gateway is told when it starts."""

from pathlib import Path
from typing import Literal

import msgspec

DEFAULT_PORT = 11500
Speculation = Literal["none", "ngram", "draft"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the operator of a gateway decides.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        models: Directory of GGUF files; None for the local store.
        max_ram_bytes: Memory that all models together may take, as predicted; None for what is free at the start.
        context: Tokens of context of a request that does not say; at most what the model was trained for, and None
            for that or what fits into memory.
        parallel: Most requests that one model answers at a time.
        threads: Threads of an engine; 0 for one per core.
        keep_alive_s: Seconds that an idle model stays loaded; 0 for none, negative for ever.
        max_queue: Requests that may wait, all models together.
        draft: GGUF file of a small model that guesses tokens for `speculate="draft"`.
        speculate: How tokens are guessed ahead: not, from the text so far, or by a draft model.
        prompt_cache_bytes: Memory of a worker for prompts whose slot was taken by another one.
        require_keys: Ask for a key on loopback too.
        keys_file: Where keys are kept; None for the usual place.
        allow_hosts: Names in a Host header that are this gateway, beside those of `origins`.
        allow_origins: Origins whose pages may call, beside those of `origins`.
        root_path: Path below which a reverse proxy shows the gateway, such as `/kvant`; empty for none.
        trust_proxies: Addresses and networks of reverse proxies whose `X-Forwarded-*` headers are believed.
        max_connections: Open connections, as far as the process may have descriptors for them.
        tls_cert: Certificate chain, PEM.
        tls_key: Its private key, PEM.
        trust_prompt_tokens: Whether what clients write may hold control tokens.
        allow_media_urls: Whether pictures and sounds that a request names by a public address are fetched.
        max_body_bytes: Longest JSON body.
        max_blob_bytes: Longest upload of a model file.
        max_json_depth: Deepest nesting of a JSON body.
        requests_per_minute: Requests that one key may make in a minute; 0 for any number.
        load_timeout_s: Seconds that loading a model may take.
        drain_s: Seconds that requests in flight have to end at a shutdown.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    models: Path | None = None
    max_ram_bytes: int | None = None
    context: int | None = None
    parallel: int = 4
    threads: int = 0
    keep_alive_s: float = 300.0
    max_queue: int = 256
    draft: Path | None = None
    speculate: Speculation = "none"
    prompt_cache_bytes: int = 0
    require_keys: bool = False
    keys_file: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    root_path: str = ""
    trust_proxies: tuple[str, ...] = ()
    max_connections: int = 1024
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trust_prompt_tokens: bool = False
    allow_media_urls: bool = False
    max_body_bytes: int = 32 << 20
    max_blob_bytes: int = 1 << 40
    max_json_depth: int = 64
    requests_per_minute: int = 0
    load_timeout_s: float = 600.0
    drain_s: float = 30.0
