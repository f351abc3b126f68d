"""Log lines as JSON objects, one a line: what happened, to which request, never what was said in it.

Their bytes are limited, for each kind of line and in all: whoever can send requests makes lines, and must not fill the
disk with them or hide other lines behind them. What was left out is counted and told; metrics count everything.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO

import msgspec

from kvant.serve.buckets import Buckets

LOGGER = "kvant.serve"
LOGGERS = (LOGGER, "kvant.files", "uvicorn", "uvicorn.error", "asyncio")
WARNING = logging.WARNING
KIND_BYTES, KIND_BYTES_PER_S = 1 << 20, 16 << 10
ALL_BYTES, ALL_BYTES_PER_S = 4 << 20, 64 << 10
TELL_EVERY_S = 10.0
MAX_KINDS = 256
log = logging.getLogger(LOGGER)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; `extra={"fields": {...}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """A record for people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = " ".join(f"{key}={_one_line(value)}" for key, value in getattr(record, "fields", {}).items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{moment} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _one_line(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else ascii(text)


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes lines as long as their kind has bytes left; says, every `TELL_EVERY_S` at most, how many it did not write.

    Args:
        stream: Where to.
        clock: Seconds that only grow.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._kinds = Buckets(KIND_BYTES, KIND_BYTES_PER_S, most=MAX_KINDS, clock=clock)
        self._all = Buckets(ALL_BYTES, ALL_BYTES_PER_S, clock=clock)
        self._clock, self._told = clock, clock()
        self._left_out: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        try:
            if self._left_out and self._clock() - self._told >= TELL_EVERY_S:
                self._tell()
            line = self.format(record) + self.terminator
            kind = _kind(record)
            if self._kinds.take(kind, len(line)) or self._all.take("", len(line)):
                self._left_out[kind if len(self._left_out) < MAX_KINDS else "others"] += 1
            else:
                self.stream.write(line)
                self.flush()
        except Exception:  # as logging does: a line that cannot be written ends nothing
            self.handleError(record)

    def _tell(self) -> None:
        record = logging.LogRecord(LOGGER, logging.WARNING, "", 0, "lines_left_out", None, None)
        record.fields = dict(self._left_out)
        self._left_out.clear()
        self._told = self._clock()
        self.stream.write(self.format(record) + self.terminator)


def _kind(record: logging.LogRecord) -> str:
    """What a record is of: its event before anything is filled in, and the status of an answer."""
    status = getattr(record, "fields", {}).get("status", "")
    return f"{record.msg} {status}".rstrip()[:80]


def configure(*, as_json: bool, level: str = "info") -> None:
    """Send the gateway's and its web server's records to standard error."""
    handler = LimitedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
        logger.setLevel(level.upper() if name == LOGGER else logging.WARNING)
        logger.addHandler(handler)


def write(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write one line about something that happened."""
    log.log(level, event, extra={"fields": {key: value for key, value in fields.items() if value is not None}})
