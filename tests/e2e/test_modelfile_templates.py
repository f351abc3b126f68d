"""A template of a model's settings does what the same template in its file would: tools, thinking, every API."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from kvant.hub.manifest import ModelSettings
from kvant.runtime.server import workers
from served import TOOLS_TEMPLATE, Served, served, write_gguf

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
BROKEN = "{# tools #}{% for m in messages %}{{ m.content }"
ENDLESS = (
    "{% for i in range(10000) %}{% for j in range(10000) %}{% for k in range(10000) %}{% endfor %}{% endfor %}"
    "{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Switch the light",
        "parameters": {
            "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    own = write_gguf(root / "own.gguf", template=TOOLS_TEMPLATE)
    write_gguf(root / "given.gguf", template=PLAIN)
    write_gguf(root / "endless.gguf", template=ENDLESS)
    (root / "mended.gguf").write_bytes((root / "endless.gguf").read_bytes())
    (root / "refused.gguf").write_bytes(own.read_bytes())
    settings = {
        "given": ModelSettings(template=TOOLS_TEMPLATE),
        "refused": ModelSettings(template=BROKEN),
        "mended": ModelSettings(template=PLAIN),
    }
    with served(root, settings=settings, parallel=1, threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def http(gateway: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=60) as client:
        yield client


def _openai(model: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Make it dark."}]
    return {"model": model, "messages": messages, "max_tokens": 64, "temperature": 0, "seed": 1} | more


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_openai_tools(http: httpx2.Client, choice: str) -> None:
    told = []
    for model in ("own", "given"):
        answer = http.post("/v1/chat/completions", json=_openai(model, tools=[TOOL], tool_choice=choice))
        assert answer.status_code == 200, answer.text
        body = answer.json()
        message = body["choices"][0]["message"]
        for call in message.get("tool_calls") or []:
            call.pop("id")
        told.append((message, body["choices"][0]["finish_reason"], body["usage"]["prompt_tokens"]))
    assert told[0] == told[1]
    if choice == "required":
        assert told[0][0]["tool_calls"][0]["function"]["name"] == "light"


def test_the_other_apis_take_tools_too(http: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "Make it dark."}]
    shown = [http.post("/api/show", json={"model": model}).json()["capabilities"] for model in ("own", "given")]
    assert shown == [["completion", "tools"]] * 2
    options = {"temperature": 0, "num_predict": 8}
    made = [
        http.post(
            "/api/chat",
            json={"model": model, "messages": messages, "tools": [TOOL], "stream": False, "options": options},
        ).json()
        for model in ("own", "given")
    ]
    assert made[0]["prompt_eval_count"] == made[1]["prompt_eval_count"]
    assert made[0]["message"] == made[1]["message"]
    tool = {"name": "light", "input_schema": TOOL["function"]["parameters"]}
    counts = [
        http.post("/v1/messages/count_tokens", json={"model": model, "messages": messages, "tools": [tool]}).json()
        for model in ("own", "given")
    ]
    assert counts[0] == counts[1]


def test_a_template_that_the_engine_refuses_is_why_there_are_no_tools(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json=_openai("refused"))
    assert answer.status_code == 400, answer.text
    assert "template: " in answer.text
    answer = http.post("/v1/chat/completions", json=_openai("refused", tools=[TOOL]))
    assert answer.status_code == 400
    assert "a template that the engine understands" in answer.text


def test_a_changed_template_is_used_at_once(gateway: Served, http: httpx2.Client) -> None:
    library = gateway.app.state.kvant.library
    before = http.post("/v1/chat/completions", json=_openai("given")).json()["usage"]["prompt_tokens"]
    library._settings["given"] = ModelSettings(template=PLAIN)
    try:
        after = http.post("/v1/chat/completions", json=_openai("given")).json()["usage"]["prompt_tokens"]
    finally:
        library._settings["given"] = ModelSettings(template=TOOLS_TEMPLATE)
    assert after < before


def test_a_template_without_end_is_refused_in_seconds_and_others_answer_meanwhile(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "TEMPLATE_S", 1.0)
    answer = http.post("/v1/chat/completions", json=_openai("endless"))
    assert answer.status_code == 502, answer.text
    assert "its chat template does not end within 1 s. Give the model another one" in answer.text
    assert http.post("/v1/chat/completions", json=_openai("own")).status_code == 200
    assert http.post("/v1/chat/completions", json=_openai("mended")).status_code == 200  # as the error advises
