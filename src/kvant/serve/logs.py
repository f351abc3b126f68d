"""Log lines as JSON objects, one a line: what happened, to which request, never what was said in it."""

import logging
import sys
import time
from typing import Any

import msgspec

LOGGER = "kvant.serve"
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


def configure(*, as_json: bool, level: str = "info") -> None:
    """Send the gateway's and its web server's records to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    for name in (LOGGER, "kvant.files", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
        logger.setLevel(level.upper() if name == LOGGER else logging.WARNING)
        logger.addHandler(handler)


def write(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write one line about something that happened."""
    log.log(level, event, extra={"fields": {key: value for key, value in fields.items() if value is not None}})
