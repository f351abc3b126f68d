"""`kvant run` of stored models and of what the hub has: settings hold, what is fetched is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Hub, Repo, serving
from kvant.hub.manifest import Message, ModelSettings
from kvant.hub.store import Store
from kvant.recipes.targets.gguf.write import quantize
from kvant.testing.tiny_models import write_tiny_model

KVANT = [sys.executable, "-m", "kvant.cli.main", "run"]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_model("llama", directory / "tiny", max_position_embeddings=8192)
    quantize(directory / "tiny", "Q8_0", directory / "tiny-Q8_0.gguf")
    return directory / "tiny-Q8_0.gguf"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*KVANT, *arguments], capture_output=True, text=True, timeout=120, check=False, input="")


def answer(*arguments: str) -> dict[str, object]:
    done = run(*arguments, "Hello", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_stored_settings_hold_and_options_stand_above_them(gguf: Path) -> None:
    plain = answer(str(gguf), "--temperature", "0", "--max-tokens", "12")
    settings = ModelSettings(
        system="Talk like a pirate.",
        parameters={"temperature": 0.0, "num_predict": 12, "seed": -1, "presence_penalty": 1.0},
        template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        messages=[Message("user", "Ahoy?"), Message("assistant", "Ahoy!")],
    )
    store = Store.open()
    store.import_file(gguf, "pirate", settings)
    first, second = answer("pirate"), answer("store:pirate:latest")
    assert first["text"] == second["text"]
    assert first["n_tokens"] == 12
    assert int(str(first["n_prompt"])) > int(str(plain["n_prompt"]))  # the system prompt and two messages more
    assert answer("pirate", "--max-tokens", "3")["n_tokens"] == 3

    text = str(first["text"])
    middle = text[len(text) // 2 : len(text) // 2 + 3]
    stopping = ModelSettings(**{**{f: getattr(settings, f) for f in settings.__struct_fields__},
                                "parameters": {**settings.parameters, "stop": [middle]}})  # fmt: skip
    store.set("stopper", stopping, base=store.find("pirate"))
    cut = answer("stopper")
    assert cut["text"] == text[: text.index(middle)]
    assert cut["stop"] == "end"


def test_what_the_hub_has_is_fetched_once(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as hub:
        hub.repos["kv/tiny-GGUF"] = Repo({gguf.name: gguf.read_bytes()})
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert run("hf:kv/tiny-GGUF", "x", "--offline").returncode == 1
        options = ("--temperature", "0", "--max-tokens", "4")
        first = answer("hf:kv/tiny-GGUF", *options)
        asked = _downloads(hub)
        assert asked == 1
        assert answer("hf:kv/tiny-GGUF:Q8_0", *options)["text"] == first["text"]
        assert answer("hf:kv/tiny-GGUF", "--offline", *options)["text"] == first["text"]
        assert _downloads(hub) == asked


def _downloads(hub: Hub) -> int:
    return sum("storage" in asked.path and asked.method == "GET" for asked in hub.asked)


def test_a_name_that_nothing_has_is_told_where_to_look() -> None:
    done = run("smollm9", "x")
    assert done.returncode == 1
    assert "kvant search smollm9" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.environ["KVANT_HOME"] not in done.stdout
