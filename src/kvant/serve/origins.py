"""Which names in a Host header are this gateway, and which pages and programs in an Origin header may call it.

Names. A page can have a name of its own point to this machine (DNS rebinding), so only names count that nobody else can
own: loopback's, the address listened on, everything below `.localhost` (RFC 6761: resolved to loopback, never asked
for), and the names that container engines give the machine they run on. The latter end in `.internal`, which is never
delegated (ICANN, 2024), but a network whose resolver lies could still answer for them; a page under such a name would
send itself as Origin, and is refused.

Origins. A web page has an http or https origin, and must be allowed by name. The schemes of `APPS` are those of
programs (Electron, Tauri, VS Code): no web page can have one, and who can install a program has more than an API.
Browser extensions are not among them: they come from everywhere and run beside every page.
"""

from kvant.serve.addresses import is_loopback, parsed

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
MACHINE_NAMES = frozenset({
    "host.docker.internal", "gateway.docker.internal", "host.containers.internal", "host.lima.internal",
})  # fmt: skip
APPS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")
APP_PAGES = ("http://tauri.localhost", "https://tauri.localhost")
"""Where Tauri shows its programs' pages on Windows; below `.localhost`, so no page of the web."""


def host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


class Origins:
    """What may be in Host and Origin.

    Args:
        listened: Address that is listened on.
        hosts: Further names of this gateway, from the operator.
        origins: Further origins, from the operator: `https://app.example`, `http://localhost:*`, `scheme://*` or `*`.
    """

    def __init__(self, listened: str, hosts: tuple[str, ...], origins: tuple[str, ...]) -> None:
        self._listened = listened.lower().strip("[]")
        self._beyond_loopback = not is_loopback(listened)
        self._hosts = frozenset(name.lower().rstrip(".") for name in hosts)
        self._origins = tuple(item.lower().rstrip("/") for item in (*APPS, *APP_PAGES, *origins))

    def is_ours(self, host: str) -> bool:
        """Whether a Host header names this gateway."""
        name = host_name(host)
        if name in LOOPBACK_NAMES or name == self._listened or name in self._hosts:
            return True
        if name.endswith(".localhost") or name in MACHINE_NAMES:
            return True
        return self._beyond_loopback and parsed(name) is not None  # rebinding needs a name

    def may_call(self, origin: str, host: str) -> bool:
        """Whether a page may call: one of this gateway's own, or an allowed one."""
        name = host_name(host)
        is_own = origin in (f"http://{host}", f"https://{host}") and (name not in MACHINE_NAMES or name in self._hosts)
        return is_own or self.is_allowed(origin)

    def is_allowed(self, origin: str) -> bool:
        """Whether an origin that is not the gateway's own is allowed; its pages may then read answers."""
        return any(_fits(origin, pattern) for pattern in self._origins)


def _fits(origin: str, pattern: str) -> bool:
    """Whether an origin is the pattern's: the same, or any after `://`, or any port after `:`."""
    if pattern == "*":
        return True
    if pattern.endswith("://*"):
        return origin.startswith(pattern[:-1])
    if pattern.endswith(":*"):
        start, _, port = origin.rpartition(":")
        return origin == pattern[:-2] or (start == pattern[:-2] and port.isdigit())
    return origin == pattern
