"""`kvant serve`: many models behind one address."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.errors import MissingDependencyError, ValueRangeError
from kvant.units import parse_bytes

SPECULATIONS = ("none", "ngram", "draft")


HostOption = Annotated[str, typer.Option(envvar="KVANT_HOST", help="Address; others than loopback need keys.")]
PortOption = Annotated[int, typer.Option(envvar="KVANT_PORT", help="Port; 0: a free one.")]
ModelsOption = Annotated[
    Path | None,
    typer.Option(envvar="KVANT_MODELS", help="Directory of GGUF files instead of the local store.", show_default=False),
]
MaxRamOption = Annotated[
    str | None,
    typer.Option(envvar="KVANT_MAX_RAM", help="Memory for all models; default: what is free.", show_default=False),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        envvar="KVANT_CONTEXT", show_default=False,
        help="Tokens of context of a request that names none; default: the model's own, as far as memory reaches.",
    ),
]  # fmt: skip
ParallelOption = Annotated[
    int, typer.Option(envvar="KVANT_PARALLEL", help="Requests a model answers at a time, as far as memory reaches.")
]
ThreadsOption = Annotated[int, typer.Option(envvar="KVANT_THREADS", help="Threads of an engine; 0: one per core.")]
KeepAliveOption = Annotated[
    float, typer.Option(envvar="KVANT_KEEP_ALIVE", help="Seconds an idle model stays; negative: for ever.")
]
MaxQueueOption = Annotated[int, typer.Option(envvar="KVANT_MAX_QUEUE", help="Requests that may wait.")]
SpeculateOption = Annotated[
    str, typer.Option(envvar="KVANT_SPECULATE", help="Guess tokens ahead: none, ngram or draft.")
]
DraftOption = Annotated[
    Path | None, typer.Option(envvar="KVANT_DRAFT", help="Small GGUF model that guesses.", show_default=False)
]
RequireKeysOption = Annotated[
    bool, typer.Option("--require-keys", envvar="KVANT_REQUIRE_KEYS", help="Ask for keys on loopback too.")
]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option(envvar="KVANT_ALLOW_HOST", help="Another name of this machine in a Host header.", show_default=False),
]
AllowOriginOption = Annotated[
    list[str] | None,
    typer.Option(
        envvar="KVANT_ALLOW_ORIGIN",
        help="An origin whose pages may call: https://app.example, http://localhost:*, chrome-extension://*; *: any.",
        show_default=False,
    ),
]
RootPathOption = Annotated[
    str, typer.Option(envvar="KVANT_ROOT_PATH", help="Path below which a proxy shows this, as /kvant.")
]
TrustProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        envvar="KVANT_TRUST_PROXY",
        help="Address or network of a reverse proxy whose X-Forwarded-* is believed; needs keys.",
        show_default=False,
    ),
]
MaxConnectionsOption = Annotated[int, typer.Option(envvar="KVANT_MAX_CONNECTIONS", help="Open connections.")]
TlsCertOption = Annotated[
    Path | None, typer.Option(envvar="KVANT_TLS_CERT", help="Certificate chain, PEM.", show_default=False)
]
TlsKeyOption = Annotated[
    Path | None, typer.Option(envvar="KVANT_TLS_KEY", help="Its private key, PEM.", show_default=False)
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-prompt-tokens", envvar="KVANT_TRUST_PROMPT_TOKENS",
        help="Let what clients write hold control tokens, as <|im_end|>.",
    ),
]  # fmt: skip
MediaUrlsOption = Annotated[
    bool,
    typer.Option(
        "--allow-media-urls", envvar="KVANT_ALLOW_MEDIA_URLS",
        help="Fetch pictures that requests name by a public address.",
    ),
]  # fmt: skip
MaxBodyOption = Annotated[str, typer.Option(envvar="KVANT_MAX_BODY", help="Longest JSON body.")]
RateOption = Annotated[int, typer.Option(envvar="KVANT_RATE", help="Requests a minute and key; 0: any number.")]
DrainOption = Annotated[
    float, typer.Option(envvar="KVANT_DRAIN", help="Seconds that answers have to end at a shutdown.")
]
LogFormatOption = Annotated[str, typer.Option(envvar="KVANT_LOG_FORMAT", help="json or text.")]
AsJsonOption = Annotated[bool, typer.Option("--json", help="Log as JSON and announce the address as JSON.")]


def serve(
    options: typer.Context,
    host: HostOption = "127.0.0.1",
    port: PortOption = 11500,
    models: ModelsOption = None,
    max_ram: MaxRamOption = None,
    context: ContextOption = None,
    parallel: ParallelOption = 4,
    threads: ThreadsOption = 0,
    keep_alive: KeepAliveOption = 300.0,
    max_queue: MaxQueueOption = 256,
    speculate: SpeculateOption = "none",
    draft: DraftOption = None,
    require_keys: RequireKeysOption = False,
    allow_host: AllowHostOption = None,
    allow_origin: AllowOriginOption = None,
    root_path: RootPathOption = "",
    trust_proxy: TrustProxyOption = None,
    max_connections: MaxConnectionsOption = 1024,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    trust_prompt_tokens: TrustOption = False,
    allow_media_urls: MediaUrlsOption = False,
    max_body: MaxBodyOption = "32MiB",
    rate: RateOption = 0,
    drain: DrainOption = 30.0,
    log_format: LogFormatOption = "text",
    as_json: AsJsonOption = False,
) -> None:
    """Serve models over HTTP: loaded when asked for, unloaded when idle, each in a process of its own.

    The models are those of the local store (kvant list), or every GGUF file under a directory.

    \b
    Examples:
      kvant serve
      kvant serve --models ./models
      kvant serve --models ./models --max-ram 8GB --parallel 8 --keep-alive 600
      kvant key add laptop && kvant serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
      kvant serve --root-path /kvant --trust-proxy 127.0.0.1 --allow-host ai.example
      kvant serve --models ./models --speculate draft --draft small.gguf
    """  # noqa: D301 - \b keeps the lines of the examples apart
    try:
        from kvant.serve import logs, server
        from kvant.serve.settings import Settings
    except ImportError as error:
        raise MissingDependencyError(
            f"kvant serve: {error.name} is not installed. Run: pip install 'kvant[serve]'"
        ) from None
    _check_numbers(
        {"--parallel": parallel, "--context": 1 if context is None else context, "--max-connections": max_connections},
        {"--max-queue": max_queue, "--threads": threads},
    )
    if speculate not in SPECULATIONS or log_format not in ("json", "text"):
        raise ValueRangeError(
            f"--speculate {speculate}, --log-format {log_format}: are not of {SPECULATIONS} and json, text."
            " Choose those."
        )
    if as_json and log_format != "json":
        refuse(options, ("log_format",), "is json with --json")
    if (speculate == "draft") != (draft is not None) or (draft is not None and not draft.is_file()):
        raise ValueRangeError("--speculate draft: needs --draft with a GGUF file, and the other way round. Give both.")
    settings = Settings(
        host=host, port=port, models=models, context=context, parallel=parallel,
        max_ram_bytes=parse_bytes(max_ram) if max_ram else None, threads=threads, keep_alive_s=keep_alive,
        max_queue=max_queue, speculate=speculate, draft=draft, require_keys=require_keys,  # type: ignore[arg-type]
        allow_hosts=tuple(name.lower() for name in allow_host or ()), allow_origins=tuple(allow_origin or ()),
        root_path=root_path.rstrip("/"), trust_proxies=tuple(trust_proxy or ()), max_connections=max_connections,
        tls_cert=tls_cert, tls_key=tls_key, max_body_bytes=parse_bytes(max_body), requests_per_minute=rate,
        drain_s=drain, trust_prompt_tokens=trust_prompt_tokens, allow_media_urls=allow_media_urls,
    )  # fmt: skip
    logs.configure(as_json=as_json or log_format == "json")
    try:
        server.serve(settings, started=lambda url: _announce(url, as_json=as_json))
    except KeyboardInterrupt:  # the usual way to end it
        return


def _check_numbers(positive: dict[str, int], counts: dict[str, int]) -> None:
    for name, value in {**positive, **counts}.items():
        least = 1 if name in positive else 0
        if value < least:
            raise ValueRangeError(f"{name}: {value} is below {least}. Choose a larger one.")


def _announce(url: str, *, as_json: bool) -> None:
    if as_json:
        console.print_json({"url": url})
    else:
        console.say(
            f"kvant serves at {url}\n"
            f"  OpenAI's API     {url}/v1\n"
            f"  Ollama's API     {url}\n"
            f"  its clients      export OLLAMA_HOST={url}\n"
            f"  chat, compare    {url}/ui/\n"
            f"  metrics, health  {url}/metrics  {url}/health\n"
            "Ctrl-C ends it."
        )
    sys.stdout.flush()
