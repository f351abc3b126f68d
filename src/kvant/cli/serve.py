"""`kvant serve`: many models behind one address."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvant.cli import console
from kvant.cli.units import parse_bytes
from kvant.errors import MissingDependencyError, ValueRangeError

SPECULATIONS = ("none", "ngram", "draft")


def serve(
    host: Annotated[
        str, typer.Option(envvar="KVANT_HOST", help="Address; others than loopback need keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="KVANT_PORT", help="Port; 0: a free one.")] = 11500,
    models: Annotated[
        Path | None, typer.Option(envvar="KVANT_MODELS", help="Directory of GGUF files.", show_default=False)
    ] = None,
    max_ram: Annotated[
        str | None,
        typer.Option(envvar="KVANT_MAX_RAM", help="Memory for all models; default: what is free.", show_default=False),
    ] = None,
    context: Annotated[int, typer.Option(envvar="KVANT_CONTEXT", help="Tokens of context of a request.")] = 4096,
    parallel: Annotated[int, typer.Option(envvar="KVANT_PARALLEL", help="Requests a model answers at a time.")] = 4,
    threads: Annotated[int, typer.Option(envvar="KVANT_THREADS", help="Threads of an engine; 0: one per core.")] = 0,
    keep_alive: Annotated[
        float, typer.Option(envvar="KVANT_KEEP_ALIVE", help="Seconds an idle model stays; negative: for ever.")
    ] = 300.0,
    max_queue: Annotated[int, typer.Option(envvar="KVANT_MAX_QUEUE", help="Requests that may wait.")] = 256,
    speculate: Annotated[
        str, typer.Option(envvar="KVANT_SPECULATE", help="Guess tokens ahead: none, ngram or draft.")
    ] = "none",
    draft: Annotated[
        Path | None, typer.Option(envvar="KVANT_DRAFT", help="Small GGUF model that guesses.", show_default=False)
    ] = None,
    require_keys: Annotated[bool, typer.Option("--require-keys", help="Ask for keys on loopback too.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name of this machine in a Host header.", show_default=False)
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may call; *: any.", show_default=False)
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.", show_default=False)] = None,
    max_body: Annotated[str, typer.Option(help="Longest JSON body.")] = "32MiB",
    rate: Annotated[int, typer.Option(envvar="KVANT_RATE", help="Requests a minute and key; 0: any number.")] = 0,
    drain: Annotated[float, typer.Option(help="Seconds that answers have to end at a shutdown.")] = 30.0,
    log_format: Annotated[str, typer.Option(envvar="KVANT_LOG_FORMAT", help="json or text.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Log as JSON and announce the address as JSON.")] = False,
) -> None:
    """Serve models over HTTP: loaded when asked for, unloaded when idle, each in a process of its own.

    \b
    Examples:
      kvant serve --models ./models
      kvant serve --models ./models --max-ram 8GB --parallel 8 --keep-alive 600
      kvant key add laptop && kvant serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
      kvant serve --models ./models --speculate draft --draft small.gguf
    """  # noqa: D301 - \b keeps the lines of the examples apart
    try:
        from kvant.serve import logs, server
        from kvant.serve.settings import Settings
    except ImportError as error:
        raise MissingDependencyError(
            f"kvant serve: {error.name} is not installed. Run: pip install 'kvant[serve]'"
        ) from None
    _check_numbers({"--parallel": parallel, "--context": context}, {"--max-queue": max_queue, "--threads": threads})
    if speculate not in SPECULATIONS or log_format not in ("json", "text"):
        raise ValueRangeError(
            f"--speculate {speculate}, --log-format {log_format}: are not of {SPECULATIONS} and json, text."
            " Choose those."
        )
    if (speculate == "draft") != (draft is not None) or (draft is not None and not draft.is_file()):
        raise ValueRangeError("--speculate draft: needs --draft with a GGUF file, and the other way round. Give both.")
    settings = Settings(
        host=host, port=port, models=models or server.default_models().models, context=context, parallel=parallel,
        max_ram_bytes=parse_bytes(max_ram) if max_ram else None, threads=threads, keep_alive_s=keep_alive,
        max_queue=max_queue, speculate=speculate, draft=draft, require_keys=require_keys,  # type: ignore[arg-type]
        allow_hosts=tuple(name.lower() for name in allow_host or ()), allow_origins=tuple(allow_origin or ()),
        tls_cert=tls_cert, tls_key=tls_key, max_body_bytes=parse_bytes(max_body), requests_per_minute=rate,
        drain_s=drain,
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
            f"  Ollama's API     {url}        (its clients: export OLLAMA_HOST={url})\n"
            f"  metrics, health  {url}/metrics  {url}/health\n"
            "Ctrl-C ends it."
        )
    sys.stdout.flush()
