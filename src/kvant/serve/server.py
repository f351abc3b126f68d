"""Run a gateway until it is told to stop."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable

from kvant.errors import AccessError, KvantError
from kvant.serve import logs
from kvant.serve.addresses import Proxies
from kvant.serve.app import make_app
from kvant.serve.connections import KEEP_ALIVE_S, Connections
from kvant.serve.door import check_safe
from kvant.serve.keys import Keys
from kvant.serve.library import DirectoryLibrary, Library
from kvant.serve.listener import GatewayServer
from kvant.serve.metrics import Metrics
from kvant.serve.settings import Settings
from kvant.serve.status import confined, unconfined
from kvant.serve.storelibrary import StoreLibrary
from kvant.serve.tracing import tracing

BACKLOG = 1024
OWN_DESCRIPTORS = 128
"""For the models' processes, files and the log."""

DESCRIPTORS_EACH = 2
"""A connection's own, and that of the engine or the file that answers it."""

MAX_PORT = 65535
ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - said, not listened on


def open_library(settings: Settings) -> Library:
    """Return the models there are: those of a directory if one is given, else those of the local store.

    Raises:
        KvantError: The directory is not there.
        StoreError: The store's directory holds something else.
    """
    if settings.models is None:
        return StoreLibrary()
    if not settings.models.is_dir():
        raise KvantError(f"{settings.models}: is not a directory. Give one that holds GGUF files with --models.")
    return DirectoryLibrary(settings.models)


def serve(settings: Settings, *, library: Library | None = None, started: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM: then take no more, let answers end, stop the workers.

    Args:
        settings: What the operator decided.
        library: Which models there are; by default those that `open_library` finds.
        started: Told the gateway's address as a URL once it accepts connections.

    Raises:
        AccessError: It would stand open to a network.
        KvantError: The address cannot be listened on, or no connection could be accepted any more.
    """
    import uvicorn

    check_safe(settings, has_keys=bool(Keys(settings.keys_file).list()))
    library = library or open_library(settings)
    library.list()  # headers are read now, not in the first request
    metrics = Metrics()
    app = make_app(settings, library, tracing=tracing(), metrics=metrics)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none", http="h11",
        proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )  # fmt: skip
    _check_tls(config)
    connections = Connections(
        connections_within(settings.max_connections), Proxies(settings.trust_proxies).__contains__,
        lambda reason: metrics.refusals.labels(reason).inc(),
    )  # fmt: skip
    metrics.connections.set_function(lambda: len(connections))
    with _listen(settings) as listener:
        server = GatewayServer(config, listener, connections, settings.drain_s)
        started(_url(settings, listener))
        _say_confinement()
        server.run()
    if server.failed:
        raise KvantError("gateway: could accept no more connections and ended; its log says why. Start it again.")


def _say_confinement() -> None:
    """Log what keeps engines in, and what does not on this machine."""
    by, lacks = " ".join(confined()), unconfined()
    if lacks:
        without = "; ".join(f"{wall}: {so}" for wall, so in lacks.items())
        logs.write("engines_confined", level=logs.WARNING, by=by, without=without)
    else:
        logs.write("engines_confined", by=by)


def connections_within(wanted: int) -> int:
    """Return how many connections there may be, after raising the limit of descriptors as far as they need it.

    Fewer than wanted where the system allows fewer descriptors; that is logged.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    needed = OWN_DESCRIPTORS + DESCRIPTORS_EACH * wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):  # macOS has a further limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(1, (soft - OWN_DESCRIPTORS) // DESCRIPTORS_EACH)
    logs.write(
        "fewer_connections", level=logs.WARNING, wanted=wanted, connections=most, descriptors=soft,
        remedy="raise the limit of open files (ulimit -n, LimitNOFILE=)",
    )  # fmt: skip
    return most


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
        where = f"{host}:{settings.port}: cannot be listened on"
        if error.errno == errno.EADDRINUSE:
            raise KvantError(
                f"{where} (in use, perhaps by a gateway that is running). Stop that, or choose another with --port."
            ) from None
        reason = os.strerror(error.errno) if error.errno else error  # create_server adds the address to strerror
        raise KvantError(f"{where} ({reason}). Choose another with --port.") from None


def _url(settings: Settings, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    host = socket.gethostname() if settings.host in ANY_HOST else settings.host
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"
