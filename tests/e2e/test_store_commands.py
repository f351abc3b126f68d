"""The store from the outside: every command, stored names where paths may stand, and kill -9."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvant.hub.manifest import ModelSettings
from kvant.hub.store import Store
from kvant.serve.passports import measured
from kvant.serve.storelibrary import StoreLibrary
from kvant.testing.tiny_models import write_tiny_model
from store_files import family, write_gguf

KVANT = [sys.executable, "-m", "kvant.cli.main"]
ROOT = Path(__file__).resolve().parent.parent.parent


def kvant(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [*KVANT, *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def document(*arguments: object, status: int = 0) -> Any:
    return json.loads(kvant(*arguments, "--json", status=status).stdout)


def names() -> list[str]:
    return [model["name"] for model in document("list")["models"]]


def test_a_models_way_through_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = family(tmp_path / "Tiny-1B-Q4_K_M.gguf", "one"), family(tmp_path / "other.gguf", "two")
    assert "empty" in kvant("list").stdout

    made = document("import", file)
    document("import", other, "tiny-1b:second")
    document("copy", "tiny-1b:Q4_K_M", "me/assistant")

    assert made[0]["name"] == "tiny-1b:Q4_K_M"
    assert names() == ["tiny-1b:Q4_K_M", "tiny-1b:second", "me/assistant:latest"]
    table = kvant("list").stdout
    assert "in parts" in table
    assert "3 models of" in table
    shown = document("show", "me/assistant")
    assert (shown["digest"], shown["settings"]["source"]) == (made[0]["digest"], str(file))
    assert str(file) in kvant("show", "me/assistant").stdout
    bundle = tmp_path / "both.tar"
    document("export", "tiny-1b:second", "me/assistant", "-o", bundle)
    assert document("rm", "tiny-1b:second", "me/assistant")["removed"] == ["tiny-1b:second", "me/assistant:latest"]
    assert names() == ["tiny-1b:Q4_K_M"]

    monkeypatch.setenv("KVANT_HOME", str(tmp_path / "another machine"))
    document("import", bundle)
    assert names() == ["tiny-1b:second", "me/assistant:latest"]
    assert Store.open().find("tiny-1b:second").path.read_bytes() == other.read_bytes()
    assert document("fsck")["findings"] == []
    assert document("gc", "--pack", "--quota", "50MB")["quota_bytes"] == 50_000_000
    assert document("list")["quota_bytes"] == 50_000_000


def test_errors_say_what_to_do_and_change_nothing(tmp_path: Path) -> None:
    file = family(tmp_path / "m.gguf", "one")
    kvant("import", file)

    assert (
        "m:latest: is in the store already. Choose another name or pass --overwrite."
        in kvant("import", file, status=1).stderr
    )
    assert "nothing: is not in the store." in kvant("rm", "m", "nothing", status=1).stderr
    assert "namespace: '..' is not" in kvant("copy", "m", "../x", status=1).stderr
    assert "is not a file" in kvant("import", tmp_path / "missing.gguf", status=1).stderr
    assert "no such model in the store" in kvant("run", "unknown", "Hi", status=1).stderr
    assert "is not in the store" in kvant("inspect", "store:unknown", status=1).stderr
    out = tmp_path / "out.tar"
    out.write_text("mine")
    assert "exists already" in kvant("export", "m", "-o", out, status=1).stderr
    assert out.read_text() == "mine"
    assert names() == ["m:latest"]


def test_a_damaged_store_fails_the_check_until_it_is_repaired(tmp_path: Path) -> None:
    model = Store.open().import_file(family(tmp_path / "m.gguf", "one"), "m")
    model.path.unlink()

    assert "kvant fsck --repair" in kvant("fsck", status=1).stdout
    assert document("fsck", "--repair")["findings"][0]["repaired"]
    assert "clean: 1 model, " in kvant("fsck").stdout


def test_stored_names_stand_where_paths_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny_model("llama", tmp_path / "tiny")
    kvant("convert", directory, "-o", tmp_path / "tiny.gguf")
    store = Store.open()
    store.import_file(
        tmp_path / "tiny.gguf",
        "tiny:f16",
        ModelSettings(parameters={"num_predict": 3, "temperature": 0, "stop": ["x"]}),
    )
    monkeypatch.chdir(tmp_path)

    answer = document("run", "store:tiny:f16", "Hello")
    longer = document("run", "tiny:f16", "Hello", "--max-tokens", "5")
    inspected = document("inspect", "tiny:f16")

    assert (answer["n_tokens"], longer["n_tokens"]) == (3, 5)
    assert longer["text"].startswith(answer["text"])
    assert inspected["architecture"] == "llama"
    scored = document("evaluate", "tiny:f16", "--against", directory, "--chunks", "1", "--context", "64", "--no-speed")
    assert scored["scores"][0]["kld_mean"] < 0.01
    store.copy("tiny:f16", "tiny")
    assert document("run", "tiny", "Hello", "--max-tokens", "1")["model"] == "tiny" or (tmp_path / "tiny").is_dir()


def test_optimize_keeps_what_it_found_with_its_passport(tmp_path: Path) -> None:
    directory = write_tiny_model("llama", tmp_path / "tiny")
    options = (
        "--max-size",
        "5MB",
        "--calibrate",
        "none",
        "--chunks",
        "1",
        "--candidates",
        "Q8_0",
        "-o",
        tmp_path / "out",
    )

    report = document("optimize", directory, *options, "--keep", "tiny:best")

    shown = document("show", "tiny:best")
    passport = shown["settings"]["passport"]
    assert (passport["preset"], passport["sha256"]) == ("Q8_0", report["sha256"])
    assert Path(shown["path"]).read_bytes() == Path(report["path"]).read_bytes()
    assert "kld_mean" in kvant("show", "tiny:best").stdout
    kvant("import", report["path"], "tiny:again")
    for name in ("tiny:best", "tiny:again"):  # what the gateway's page shows
        card = measured(StoreLibrary().find(name))
        assert card is not None
        assert card.kld_mean == report["variants"][0]["score"]["kld_mean"]
        assert card.base_sha256
    again = kvant("optimize", directory, *options, "--keep", "tiny:best", status=1)
    assert "tiny:best: is in the store already" in again.stderr


def test_a_setting_that_is_no_number_is_refused(tmp_path: Path) -> None:
    settings = ModelSettings(parameters={"top_k": "many"})
    Store.open().import_file(write_gguf(tmp_path / "m.gguf", {"t": b"1234"}), "m", settings)

    said = kvant("run", "m", "Hi", status=1).stderr
    assert 'm: option "top_k" must be of type integer. Set it again with kvant create.' in " ".join(said.split())


def test_the_shell_completes_names_and_files(tmp_path: Path, own_home: Path) -> None:
    Store.open().import_file(family(tmp_path / "m.gguf", "one"), "smollm2:q4")
    environment = {
        **os.environ, "KVANT_HOME": str(own_home), "_KVANT_COMPLETE": "complete_bash", "COMP_CWORD": "2",
    }  # fmt: skip

    def complete(line: str) -> list[str]:
        program = "from kvant.cli.main import app; app(prog_name='kvant')"
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env={**environment, "COMP_WORDS": line}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout.split()

    assert complete("kvant show smo") == ["smollm2:q4"]
    assert complete("kvant rm x") == []
    assert set(complete("kvant run ")) >= {"m.gguf", "smollm2:q4"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize("at", ["time", "operation"])
def test_nothing_complete_is_lost_to_kill_9(at: str, tmp_path: Path) -> None:
    driver = ROOT / "benchmarks" / "store_kill.py"
    command = [sys.executable, str(driver), "--kills", "10", "--bytes", "60000", "--seed", "7", "--at", at]

    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"] == 10
