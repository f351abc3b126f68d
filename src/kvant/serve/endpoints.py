"""What a route is: where, how, who may, in whose words errors are told, what it takes and gives; and finding one."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from kvant.serve.keys import SCOPES
from kvant.serve.wording import Dialect, guessed

PUBLIC = "public"
"""The scope of what everybody may ask, without a key too."""

JSON, NDJSON, SSE = "application/json", "application/x-ndjson", "text/event-stream"
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One way to ask a gateway something; a row of the table in `routes`.

    Attributes:
        method: HTTP method; what may be got may also be asked for its head.
        path: Where, with `{name}` for a step that varies and `{name:path}` for several.
        handler: Answers.
        summary: What for; empty for what is not described: pages.
        request: Body as JSON, if there is one.
        answer: Body of the answer; None for one without a fixed type here.
        scope: Who may: one of `keys.SCOPES`, or `PUBLIC`.
        dialect: How errors are worded.
        heading: Whose API it belongs to, as documents call it.
        media: Media type of the answer; empty for none.
        stream: Media type of an answer that streams.
        is_upload: Whether the body is a file, which is not read before it is passed on.
        is_probe: Whether it is never refused for the number of requests: an orchestrator that is told 429 ends the
            gateway.
    """

    method: str
    path: str
    handler: Handler
    summary: str = ""
    request: type | None = None
    answer: type | None = None
    _: KW_ONLY
    scope: str
    dialect: Dialect
    heading: str
    media: str = JSON
    stream: str | None = None
    is_upload: bool = False
    is_probe: bool = False

    def __post_init__(self) -> None:
        if self.scope != PUBLIC and self.scope not in SCOPES:
            raise ValueError(f"{self.path}: scope {self.scope!r} is none. Choose one of {', '.join(SCOPES)}.")


class Endpoints:
    """All of them.

    Args:
        rows: The table; of two whose paths take the same request, the first one counts.
    """

    def __init__(self, rows: Iterable[Endpoint]) -> None:
        self._rows = tuple(rows)
        self._fixed: dict[str, list[Endpoint]] = {}
        self._varying: list[tuple[re.Pattern[str], Endpoint]] = []
        for row in self._rows:
            if "{" in row.path:
                self._varying.append((compile_path(row.path)[0], row))
            else:
                self._fixed.setdefault(row.path, []).append(row)

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._rows)

    def at(self, path: str) -> list[Endpoint]:
        """Return those of a path, one for each method."""
        return self._fixed.get(path) or [row for pattern, row in self._varying if pattern.match(path)]

    def find(self, method: str, path: str) -> Endpoint | None:
        """Return the one that a request comes to; None where there is none, or none for its method."""
        rows = self.at(path)
        for wanted in (method, "GET") if method == "HEAD" else (method,):
            for row in rows:
                if row.method == wanted:
                    return row
        return None

    def dialect(self, path: str) -> Dialect:
        """Return how errors are worded at a path, whether or not there is anything."""
        rows = self.at(path)
        return rows[0].dialect if rows else guessed(path)
