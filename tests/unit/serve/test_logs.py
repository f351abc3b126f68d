import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from kvant.serve import logs
from serving import loggers_as_before


@pytest.fixture(autouse=True)
def own_loggers() -> Iterator[None]:
    with loggers_as_before():
        yield


def test_one_json_object_a_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True)
    logs.write("request", id="1", path='/v1/"\n{"event": "forged"}', caller=None, ms=1.5)
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        logs.log.error("defect", exc_info=error)
    logging.getLogger("uvicorn.error").warning("odd")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["request", "defect", "odd"]
    assert lines[0]["path"].endswith('"forged"}')
    assert "caller" not in lines[0]
    assert lines[0]["time"].endswith("Z")
    assert "ValueError" in lines[1]["error"]


def test_no_flood_of_lines_fills_the_disk_or_hides_other_lines() -> None:
    now = [0.0]
    stream = io.StringIO()
    handler = logs.LimitedHandler(stream, clock=lambda: now[0])
    handler.setFormatter(logs.JsonFormatter())

    def write(event: str, n: int, **fields: Any) -> None:
        for _ in range(n):
            record = logging.LogRecord(logs.LOGGER, logging.INFO, "", 0, event, None, None)
            record.fields = fields
            handler.emit(record)

    write("request", 8_000, status=404, path="/" + "x" * 100)
    first = stream.tell()
    assert first <= logs.KIND_BYTES
    write("request", 1, status=200)
    write("crashed", 1)
    now[0] = 20.0
    write("request", 8_000, status=404, path="/" + "x" * 100)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines if line.get("status") != 404] == ["request", "crashed", "lines_left_out"]
    (told,) = [line for line in lines if line["event"] == "lines_left_out"]
    written = sum(
        line.get("status") == 404 for line in json.loads(f"[{','.join(stream.getvalue()[:first].splitlines())}]")
    )
    assert told["request 404"] == 8_000 - written
    assert stream.tell() - first <= 20 * logs.KIND_BYTES_PER_S + 1000
    for kind in range(1000):
        write(f"kind {kind}", 20, text="x" * 1000)
    assert stream.tell() <= logs.ALL_BYTES + 20 * logs.ALL_BYTES_PER_S


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=False)
    logs.write("request", path="/x\nforged \x1b[31m")
    assert capsys.readouterr().err.count("\n") == 1
    logs.write("request", id="1", status=200)
    assert capsys.readouterr().err.rstrip().endswith("info    request id=1 status=200")
