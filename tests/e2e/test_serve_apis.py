"""The APIs from outside, byte by byte: streams, errors, disconnects, crashes, what a model's settings do."""

import base64
import contextlib
import json
import os
import signal
import struct
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from kvant.hub.manifest import Message, ModelSettings
from kvant.serve.api import run
from served import Served, served, write_gguf

LONG = 100_000
ASK = [{"role": "user", "content": "Hello"}]
SET = ModelSettings(
    system="Be a pirate.",
    parameters={"num_predict": 2, "temperature": 0.0, "stop": ["never this"]},
    messages=[Message("user", "Ahoy"), Message("assistant", "Arr")],
    license=["MIT"],
)
OTHER = ModelSettings(template="{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
BROKEN = ModelSettings(template="{% for m in messages %}{{ m.content }")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    first = write_gguf(root / "plain.gguf", context=8192)
    for name in ("set", "other", "broken"):
        os.link(first, root / f"{name}.gguf")
    write_gguf(root / "small.gguf", context=512)
    with served(root, settings={"set": SET, "other": OTHER, "broken": BROKEN}, context=8192) as running:
        yield running


@pytest.fixture
def http(gateway: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=120) as client:
        yield client


def test_what_clients_look_for_first(http: httpx2.Client) -> None:
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200
    assert http.get("/api/version").json()["version"].count(".") == 2
    assert http.get("/api/chat").status_code == 405
    assert http.head("/api/tags").status_code == 200


def test_ollamas_stream_is_lines_of_json(http: httpx2.Client) -> None:
    body = {"model": "plain", "messages": ASK, "options": {"num_predict": 3}}
    with http.stream("POST", "/api/chat", json=body) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert all(line["model"] == "plain" and line["created_at"].endswith("Z") for line in lines)
    assert [line["done"] for line in lines][-1] is True
    assert "total_duration" not in lines[0]
    assert lines[-1]["done_reason"] == "length"
    assert lines[-1]["eval_count"] == 3


def test_openais_stream_is_events(http: httpx2.Client) -> None:
    body = {"model": "plain", "messages": ASK, "max_tokens": 2, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        text = answer.read().decode()

    assert answer.headers["content-type"] == "text/event-stream"
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["model"] == "plain" for event in events[:-2])
    assert '"usage"' not in text


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/api/generate", {"prompt": "Hi", "options": {"num_predict": LONG}}, b'{"error":"model \'plain\': the engine'),
        ("/api/chat", {"messages": ASK, "options": {"num_predict": LONG}}, b'{"error":"model \'plain\': the engine'),
        ("/v1/chat/completions", {"messages": ASK, "stream": True}, b'data: {"error":{"message":"model'),
        ("/v1/completions", {"prompt": "Hi", "stream": True, "max_tokens": LONG}, b'data: {"error":{"message":"model'),
        ("/v1/responses", {"input": "Hi", "stream": True}, b'data: {"type":"response.failed",'),
        ("/v1/messages", {"messages": ASK, "stream": True, "max_tokens": LONG}, b'data: {"type":"error","error":{"ty'),
    ],
)  # fmt: skip
def test_an_engine_that_crashes_in_the_middle_ends_the_stream_with_an_error(
    gateway: Served, http: httpx2.Client, path: str, body: dict[str, Any], last: bytes
) -> None:
    with http.stream("POST", path, json=body | {"model": "plain"}) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        [loaded] = [model for model in gateway.loaded() if model.file.name == "plain"]
        os.kill(loaded.pid, signal.SIGKILL)
        rest = [line for line in lines if line]

    assert answer.status_code == 200
    assert rest[-1].encode().startswith(last)
    again = http.post(
        "/api/generate", json={"model": "plain", "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
    )
    assert again.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_engine(gateway: Served, stream: bool) -> None:
    body = {"model": "plain", "messages": ASK, "max_tokens": 8000, "stream": stream}
    with httpx2.Client(base_url=gateway.url, timeout=120 if stream else 0.2) as http:
        http.post("/api/generate", json={"model": "plain"}, timeout=120)
        if stream:
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with contextlib.suppress(httpx2.TimeoutException):
                http.post("/v1/chat/completions", json=body)

    gateway.ask(lambda: gateway.app.state.kvant.scheduler.settled(lambda: not _in_use(gateway)))
    made = max(slot["next_token"][0]["n_decoded"] for slot in _slots(gateway) if slot.get("next_token"))
    assert made < 7000


def _in_use(gateway: Served) -> int:
    return sum(gateway.app.state.kvant.scheduler.running().values())


def _slots(gateway: Served) -> list[dict[str, Any]]:
    """Return the engine's slots, once none of them works."""

    async def look() -> list[dict[str, Any]]:
        scheduler = gateway.app.state.kvant.scheduler
        file = gateway.app.state.kvant.library.find("plain")
        async with scheduler.lease(file, caller="test") as lease:
            while True:
                found: list[dict[str, Any]] = json.loads((await lease.worker.get("/slots"))[1])
                if not any(slot["is_processing"] for slot in found):
                    return found

    return gateway.ask(look)


def test_a_models_settings_speak_where_the_request_is_silent(http: httpx2.Client) -> None:
    made = http.post("/api/generate", json={"model": "set", "prompt": "Hi", "stream": False}).json()
    told = http.post("/api/generate", json={"model": "set", "prompt": "Hi", "system": "", "stream": False}).json()
    chat = http.post("/v1/chat/completions", json={"model": "set", "messages": ASK}).json()
    own = [{"role": "system", "content": "x"}, *ASK]
    other = http.post("/v1/chat/completions", json={"model": "set", "messages": own, "max_tokens": 1}).json()

    assert made["eval_count"] == 2
    assert made["prompt_eval_count"] > told["prompt_eval_count"]
    assert chat["usage"]["completion_tokens"] == 2
    assert other["usage"]["completion_tokens"] == 1
    shown = http.post("/api/show", json={"model": "set"}).json()
    assert shown["system"] == "Be a pirate."
    assert shown["license"] == "MIT"
    assert 'stop                           "never this"' in shown["parameters"]
    assert shown["messages"] == [{"role": "user", "content": "Ahoy"}, {"role": "assistant", "content": "Arr"}]


def test_another_template_renders_the_prompt_in_every_api(http: httpx2.Client) -> None:
    n_tokens = http.post("/v1/messages/count_tokens", json={"model": "other", "messages": ASK}).json()["input_tokens"]
    chat = http.post("/v1/chat/completions", json={"model": "other", "messages": ASK, "max_tokens": 1}).json()
    line = http.post(
        "/api/chat", json={"model": "other", "messages": ASK, "stream": False, "options": {"num_predict": 1}}
    ).json()
    given = http.post(
        "/api/generate",
        json={
            "model": "plain", "prompt": "Hello", "template": OTHER.template, "stream": False,
            "options": {"num_predict": 1},
        },
    ).json()  # fmt: skip

    assert chat["usage"]["prompt_tokens"] == line["prompt_eval_count"] == given["prompt_eval_count"] == n_tokens


def test_a_template_that_is_broken_is_an_error_and_no_dead_worker(
    gateway: Served, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "HEAD_S", 600.0)  # however long a busy machine takes to load the model
    for path, body in (
        ("/api/chat", {"messages": ASK}),
        ("/v1/chat/completions", {"messages": ASK, "stream": True}),
        ("/v1/messages", {"messages": ASK, "max_tokens": 1}),
    ):
        answer = http.post(path, json=body | {"model": "broken"})
        assert answer.status_code == 400
        assert "template: " in answer.text
    assert "broken" in [model.file.name for model in gateway.loaded()]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/api/generate", {"prompt": "x", "raw": True, "template": "y"}, "raw mode does not support template"),
        ("/api/generate", {"prompt": "x", "images": ["aaaa"]}, "does not support images"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "Infill is not supported"),
        ("/api/generate", {"prompt": "x", "format": 3}, "invalid format"),
        ("/api/generate", {"prompt": "x", "keep_alive": "soon"}, "invalid duration"),
        ("/api/generate", {"prompt": "x", "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("/api/generate", {"prompt": "x", "context": [1, "2"]}, "context[1]"),
        ("/api/generate", {"prompt": "x", "context": [1 << 40]}, "context"),
        ("/api/generate", {"prompt": "x", "context": [-5]}, "context"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}{{ .Bogus }}"}, "template"),
        ("/api/chat", {"messages": [{"role": "wizard", "content": "x"}]}, "invalid role"),
        ("/api/chat", {"messages": ASK, "format": {"type": "bogus"}}, "bogus"),
        ("/api/embed", {"input": [""]}, "a text is empty"),
        ("/api/embed", {"input": "word " * 900, "model": "small", "truncate": False}, "exceeds the context length"),
        ("/v1/embeddings", {"input": "word " * 900, "model": "small"}, "maximum context length is 512 tokens"),
        ("/v1/embeddings", {"input": ""}, "a text is empty"),
        ("/api/embed", {"input": "x", "dimensions": 10_000}, "dimensions"),
        ("/v1/completions", {"prompt": []}, "prompt: is empty"),
        ("/v1/completions", {"prompt": ["x", 3]}, "prompt: is not a text"),
        ("/v1/completions", {"prompt": [1 << 40]}, "no token ids"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo"),
        ("/v1/chat/completions", {"messages": []}, "messages: is empty"),
        ("/v1/chat/completions", {"messages": ASK, "logit_bias": {"x": 1}}, "no token id"),
        ("/v1/chat/completions", {"messages": ASK, "grammar": "x", "response_format": {"type": "json_object"}}, "gram"),
        ("/v1/responses", {"input": "x", "previous_response_id": "y"}, "nothing is stored"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ("/v1/messages", {"messages": ASK, "max_tokens": 0}, "max_tokens: 0 is not positive"),
        ("/v1/messages", {"messages": ASK}, "max_tokens: is missing"),
    ],
)  # fmt: skip
def test_what_is_refused(http: httpx2.Client, path: str, body: dict[str, Any], message: str) -> None:
    few: dict[str, Any] = {"options": {"num_predict": 1}} if path.startswith("/api/") else {}
    answer = http.post(path, json=few | {"model": "plain"} | body)

    assert answer.status_code == 400, answer.text
    assert message in json.dumps(answer.json(), ensure_ascii=False)


def test_a_prompt_is_cut_only_for_those_who_ask(http: httpx2.Client) -> None:
    talk = [{"role": "user", "content": f"{i} " + "word " * 20} for i in range(30)]
    options = {"num_predict": 2}
    body = {"model": "small", "messages": talk, "stream": False, "options": options}

    assert http.post("/api/chat", json=body).status_code == 400
    cut = http.post("/api/chat", json=body | {"truncate": True}).json()
    assert 0 < cut["prompt_eval_count"] < 512
    text = {"model": "small", "prompt": "word " * 900, "raw": True, "stream": False, "options": options}
    assert http.post("/api/generate", json=text | {"truncate": False}).status_code == 400
    assert http.post("/api/generate", json=text | {"truncate": True}).json()["eval_count"] == 2
    embed = {"model": "small", "input": "word " * 900}
    assert http.post("/api/embed", json=embed | {"truncate": False}).status_code == 400
    for more in ({}, {"truncate": True}, {"options": {"num_ctx": 100_000}}):  # Ollama's default is to cut a text
        assert http.post("/api/embed", json=embed | more).json()["prompt_eval_count"] == 512
    assert http.post("/api/embed", json=embed | {"options": {"num_ctx": 256}}).json()["prompt_eval_count"] == 256
    older = http.post("/api/embeddings", json={"model": "small", "prompt": "word " * 900}).json()["embedding"]
    assert round(sum(x * x for x in older), 3) == 1.0
    assert http.post("/api/embed", json=embed | {"input": ""}).json()["embeddings"] == []


def test_a_text_is_embedded_as_long_as_the_model_reads(http: httpx2.Client) -> None:
    long = "word " * 700  # beyond the engine's usual batch
    asked = {"model": "plain", "input": ["a", long], "dimensions": 8, "encoding_format": "base64"}

    answer = http.post("/v1/embeddings", json=asked)

    assert answer.status_code == 200, answer.text
    vectors = [struct.unpack("<8f", base64.b64decode(row["embedding"])) for row in answer.json()["data"]]
    assert [round(sum(x * x for x in vector), 3) for vector in vectors] == [1.0, 1.0]
    assert answer.json()["usage"]["prompt_tokens"] > 1400
    whole = http.post("/api/embed", json={"model": "plain", "input": long}).json()
    assert whole["prompt_eval_count"] > 1400
    again = http.post("/api/embed", json={"model": "plain", "input": "a"}).json()["embeddings"][0]
    short = [x / sum(y * y for y in again[:8]) ** 0.5 for x in again[:8]]
    assert short == pytest.approx(list(vectors[0]), abs=2e-3)


def test_probabilities_in_ollamas_form(http: httpx2.Client) -> None:
    body = {"model": "plain", "messages": ASK, "stream": False, "logprobs": True, "top_logprobs": 2}
    answer = http.post("/api/chat", json=body | {"options": {"num_predict": 2, "temperature": 0}}).json()

    assert all(len(token["top_logprobs"]) == 2 for token in answer["logprobs"])
    assert (
        "logprobs" not in http.post("/api/chat", json=body | {"logprobs": False, "options": {"num_predict": 1}}).json()
    )
