import json
import logging
from collections.abc import Iterator

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


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=False)
    logs.write("request", path="/x\nforged \x1b[31m")
    assert capsys.readouterr().err.count("\n") == 1
    logs.write("request", id="1", status=200)
    assert capsys.readouterr().err.rstrip().endswith("info    request id=1 status=200")
