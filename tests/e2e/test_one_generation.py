"""`kvant run` and the gateway make the same text of the same model, messages, options and seed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kvant.hub.manifest import Message, ModelSettings
from kvant.hub.store import Store
from kvant.recipes.chat import Chat
from kvant.recipes.targets.gguf.write import quantize
from served import Served, served, write_gguf

KVANT = [sys.executable, "-m", "kvant.cli.main", "run"]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | tojson }}\n{% endfor %}{{ '<assistant>' }}"
ALL: dict[str, Any] = {
    "temperature": 1.1, "top_k": 300, "top_p": 0.97, "min_p": 0.001, "typical_p": 0.95, "repeat_last_n": 16,
    "repeat_penalty": 1.3, "presence_penalty": 1.5, "frequency_penalty": 1.2, "seed": 7, "num_predict": 24,
}  # fmt: skip
APIS = ("/api/chat", "/v1/chat/completions")
SETTINGS = {
    "all": ModelSettings(
        system="Be <brief>.", parameters=ALL, messages=[Message("user", "Ahoy?"), Message("assistant", "Ahoy!")]
    ),
    "templated": ModelSettings(template=TEMPLATE, parameters=ALL),
    "mirostat": ModelSettings(parameters={**ALL, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in ("plain", *SETTINGS):
        write_gguf(root / f"{name}.gguf")
    return root


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[Served]:
    with served(root, settings=SETTINGS, parallel=1, threads=1) as running:
        yield running


@pytest.fixture
def http(gateway: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=120) as client:
        yield client


def forget(http: httpx2.Client, model: str) -> None:
    """Unload a model: what an engine has read already is computed otherwise, in the last digits."""
    http.post("/api/generate", json={"model": model, "keep_alive": 0})


def said(http: httpx2.Client, api: str, model: str, messages: list[dict[str, str]], **options: Any) -> str:
    body = {"model": model, "messages": messages, "stream": False, "options": options}
    answer = http.post(api, json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    message = told["message"] if api == "/api/chat" else told["choices"][0]["message"]
    return str(message["content"])


def both(http: httpx2.Client, model: str, messages: list[dict[str, str]], **options: Any) -> str:
    """Return what both APIs answer, which is the same."""
    texts = []
    for api in APIS:
        forget(http, model)
        texts.append(said(http, api, model, messages, **options))
    assert texts[0] == texts[1]
    return texts[0]


def run(*arguments: str) -> str:
    done = subprocess.run([*KVANT, *arguments, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["text"])


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_stored_model_with_all_its_parameters(http: httpx2.Client, root: Path, name: str) -> None:
    Store.open().import_file(root / f"{name}.gguf", f"one-{name}", SETTINGS[name])
    text = run(f"one-{name}", "Say <b> & 'ö'")
    assert text == both(http, name, [{"role": "user", "content": "Say <b> & 'ö'"}])
    assert len(text) > 8
    other = run(f"one-{name}", "Say <b> & 'ö'", "--seed", "8")
    assert other == both(http, name, [{"role": "user", "content": "Say <b> & 'ö'"}], seed=8)
    assert other != text


def test_every_option_reaches_the_engine(http: httpx2.Client, root: Path) -> None:
    options = {name: value for name, value in ALL.items() if name != "num_predict"}
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    text = run(str(root / "plain.gguf"), "Hello", "--max-tokens", "24", *given)
    assert text == both(http, "plain", [{"role": "user", "content": "Hello"}], **ALL)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "sampled"])
def test_a_conversation_of_several_turns(http: httpx2.Client, root: Path, options: dict[str, float], api: str) -> None:
    _same(http, api, root / "plain.gguf", "plain", {"top_k": 40, "top_p": 0.9, "min_p": 0.0, **options})


def _same(http: httpx2.Client, api: str, path: Path, name: str, options: dict[str, float]) -> None:
    forget(http, name)
    messages = [{"role": "system", "content": "You are a pirate."}]
    with Chat(path, system="You are a pirate.", sampling=options, max_tokens=12, threads=1) as chat:
        for text in ("Hello", "Write <|im_end|> once", "And then?"):
            messages.append({"role": "user", "content": text})
            answer = chat.ask(text).text
            assert answer == said(http, api, name, messages, num_predict=12, **options)
            messages.append({"role": "assistant", "content": answer})


@pytest.mark.model
def test_the_reference_model(reference_model: Path, tmp_path: Path) -> None:
    options = {"temperature": 1.0, "seed": 3, "top_k": 40, "top_p": 0.9, "min_p": 0.0}
    quantize(reference_model, "Q4_K_M", tmp_path / "real.gguf")
    with (
        served(tmp_path, parallel=1, threads=1) as running,
        httpx2.Client(base_url=running.url, timeout=120) as http,
    ):
        for api in APIS:
            _same(http, api, tmp_path / "real.gguf", "real", options)
