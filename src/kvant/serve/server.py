"""Run a gateway until it is told to stop."""

import socket
from collections.abc import Callable

from kvant.errors import AccessError, KvantError
from kvant.files import home
from kvant.serve.app import make_app
from kvant.serve.door import MAX_HEADER_BYTES, check_safe
from kvant.serve.keys import Keys
from kvant.serve.library import DirectoryLibrary, Library
from kvant.serve.settings import Settings
from kvant.serve.tracing import tracing

BACKLOG = 1024
SPARE_CONNECTIONS = 256
KEEP_ALIVE_S = 30
MAX_PORT = 65535
ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - said, not listened on


def default_models() -> Settings:
    """Return settings as they are when nothing is said: models in kvant's own directory."""
    return Settings(models=home() / "models")


def open_library(settings: Settings) -> Library:
    """Return the models there are.

    Raises:
        KvantError: The directory is not there.
    """
    if not settings.models.is_dir():
        raise KvantError(f"{settings.models}: is not a directory. Give one that holds GGUF files with --models.")
    return DirectoryLibrary(settings.models)


def serve(settings: Settings, *, library: Library | None = None, started: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM: then take no more, let answers end, stop the workers.

    Args:
        settings: What the operator decided.
        library: Which models there are; those of the settings' directory by default.
        started: Told the gateway's address as a URL once it accepts connections.

    Raises:
        AccessError: It would stand open to a network.
        KvantError: The address cannot be listened on.
    """
    import uvicorn

    check_safe(settings, has_keys=bool(Keys(settings.keys_file).list()))
    library = library or open_library(settings)
    library.list()  # headers are read now, not in the first request
    app = make_app(settings, library, tracing=tracing())
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none", http="h11",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        limit_concurrency=settings.max_queue + settings.parallel + SPARE_CONNECTIONS,
        ssl_certfile=settings.tls_cert, ssl_keyfile=settings.tls_key,
    )  # fmt: skip
    _check_tls(config)
    with _listen(settings) as listener:
        started(_url(settings, listener))
        uvicorn.Server(config).run(sockets=[listener])


def _check_tls(config: object) -> None:
    """Load the certificate now, so that a wrong one is one line and not a stack."""
    try:
        config.load()  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        raise AccessError(f"TLS: the certificate or its key cannot be used ({error}). Give PEM files.") from None


def _listen(settings: Settings) -> socket.socket:
    host = settings.host.strip("[]")
    if not 0 <= settings.port <= MAX_PORT:
        raise KvantError(f"{host}:{settings.port}: cannot be listened on (ports end at {MAX_PORT}). Choose another.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise KvantError(
            f"{host}:{settings.port}: cannot be listened on ({reason}). Choose another with --port."
        ) from None


def _url(settings: Settings, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    host = socket.gethostname() if settings.host in ANY_HOST else settings.host
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"
