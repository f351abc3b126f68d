"""Models that upstream's converter alone converts, in every command: with a small converter of the same layout.

The real one is run by tests/parity/test_upstream_way.py.
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from typer.testing import CliRunner

from converter_files import use_converter, write_converter, write_model
from kvant.cli.main import app
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.huggingface.architectures.registry import BY_CLASS
from kvant.formats.huggingface.architectures.upstream_table import TEXT
from kvant.recipes import source as sources
from kvant.recipes.source import open_model
from kvant.runtime.converter import environment
from kvant.testing.pictures import write_tiny_projector
from kvant.testing.tiny_models import write_safetensors, write_tiny_model

pytestmark = pytest.mark.heavy


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = write_converter(tmp_path / "llama.cpp")
    use_converter(monkeypatch, place)
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-lm")


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.mark.usefixtures("converter")
def test_convert_goes_upstream_and_says_so(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    done = run("convert", model, "-t", "F32", "-o", out, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert (told["converter"], told["architecture"], told["type"]) == ("upstream", "llama", "F32")
    assert told["remarks"][0].startswith("Converted by upstream's converter")
    assert any("its pre-tokenizer is smollm" in remark for remark in told["remarks"])
    assert files(out.parent) == ["m.gguf"]
    fields = GGUFReader(out).fields
    assert fields["general.name"].contents() == "tiny-lm"
    assert "model.safetensors" in json.loads(fields["general.description"].contents())
    assert "upstream" in run("convert", model, "-t", "F16", "-o", out, "--overwrite").output.splitlines()[-1]
    assert run("convert", model, "-o", out).exit_code == 1


@pytest.mark.usefixtures("converter")
def test_a_family_of_kvant_s_goes_its_own_way_unless_asked(tmp_path: Path) -> None:
    tiny = write_tiny_model("llama", tmp_path / "llama", tokenizer="smollm")
    done = run("convert", tiny, "-o", tmp_path / "a.gguf", "--json")
    assert json.loads(done.output)["converter"] == "native"
    assert "native" in run("convert", tiny, "-o", tmp_path / "b.gguf").output.splitlines()[-1]
    done = run("convert", tiny, "-o", tmp_path / "c.gguf", "--converter", "upstream", "--json")
    assert json.loads(done.output)["converter"] == "upstream"


@pytest.mark.usefixtures("converter")
def test_the_output_is_split_like_any_other(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m.gguf"
    out.parent.mkdir()
    assert run("convert", model, "-t", "F32", "-o", out, "--max-file-size", "160kB").exit_code == 0
    assert run("convert", model, "-t", "F32", "-o", out.parent / "whole.gguf").exit_code == 0
    first = next(name for name in files(out.parent) if "-00001-of-" in name)
    one, other = read_gguf(out.parent / first), read_gguf(out.parent / "whole.gguf")
    assert one.tensors.keys() == other.tensors.keys()


@pytest.mark.usefixtures("converter")
@pytest.mark.parametrize(
    ("entries", "options", "words"),
    [
        ({"test_rows": 1}, (), "rows for"),
        ({"test_value": float("1e6")}, ("-t", "F16"), "F16 ends at 65504. Use -t BF16 or F32"),
        ({"test_raises": "no such expert"}, (), "fails (ValueError: no such expert)"),
        ({}, ("-t", "keep"), "is not what upstream's converter does"),
        ({}, ("--converter", "native"), "none of kvant's own families"),
        ({}, ("--to", "mlx"), "none of kvant's own families"),
        ({}, ("--to", "mlx", "--converter", "upstream"), "GGUF files of Hugging Face directories alone"),
        ({"architectures": ["NobodysForCausalLM"]}, (), "is known neither to kvant nor to the pinned version"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_leaves_nothing(
    entries: dict[str, Any], options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "tiny-lm", **entries)
    place = tmp_path / "out"
    place.mkdir()
    done = run("convert", model, "-o", place / "m.gguf", *options)
    assert done.exit_code == 1, done.output
    assert words in done.output
    assert files(place) == []


@pytest.mark.usefixtures("converter")
def test_a_tokenizer_that_the_engine_does_not_open_is_not_kept(model: Path, tmp_path: Path) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = ["no merge of these"]
    path.write_text(json.dumps(tokenizer))
    place = tmp_path / "out"
    place.mkdir()
    done = run("convert", model, "-o", place / "m.gguf")
    assert done.exit_code in (0, 1)
    assert files(place) == (["m.gguf"] if done.exit_code == 0 else [])


@pytest.mark.usefixtures("converter")
def test_an_unknown_class_is_tried_where_it_is_asked(tmp_path: Path) -> None:
    model = write_model(tmp_path / "new-lm", architectures=["NobodysForCausalLM"])
    assert run("convert", model, "-o", tmp_path / "m.gguf", "--converter", "upstream").exit_code == 0


@pytest.mark.usefixtures("converter")
def test_jobs_convert_once_and_work_on_that(model: Path, tmp_path: Path, own_home: Path) -> None:
    done = run("quantize", model, "-t", "Q8_0", "-o", tmp_path / "q.gguf", "--json")
    assert done.exit_code == 0, done.output
    remarks = json.loads(done.output[done.output.index("{") :])["remarks"]
    (kept,) = (own_home / "cache" / "upstream").glob("*/tiny-lm-BF16.gguf")
    assert str(kept) in remarks[0]
    assert remarks[1].startswith("Converted by upstream's converter")
    before = kept.stat().st_mtime_ns
    found = open_model(model)
    assert kept.stat().st_mtime_ns == before
    assert (found.files, found.origin, list(found.remarks)) == ((kept,), model, remarks)
    assert read_gguf(tmp_path / "q.gguf").get("kvant.source.name") == "tiny-lm"


def test_another_model_or_converter_is_converted_anew(converter: Path, model: Path, own_home: Path) -> None:
    def kept() -> int:
        return len(list((own_home / "cache" / "upstream").glob("*/*.gguf")))

    open_model(model)
    (model / "tokenizer_config.json").write_text("{}")
    open_model(model)
    assert kept() == 2
    (converter / "conversion" / "more.py").write_text("")
    open_model(model)
    assert kept() == 3


@pytest.mark.usefixtures("converter")
def test_what_was_kept_for_long_gives_way(model: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model(model)
    monkeypatch.setattr(sources, "MAX_CACHE_BYTES", 1)
    (model / "generation_config.json").write_text("{}")
    open_model(model)
    assert len(list((own_home / "cache" / "upstream").glob("*/*.gguf"))) == 1


def test_without_the_converter_it_is_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    for name in (environment.PYTHON, environment.SOURCE, environment.AGREED):
        monkeypatch.delenv(name, raising=False)
    for words in (("convert", model), ("quantize", model, "-t", "Q8_0"), ("optimize", model, "--max-size", "1MB")):
        done = run(*words)
        assert done.exit_code == 1
        assert "torch==" in done.output
        assert "--yes" in done.output
    assert not (own_home / "converter").exists()


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "kvant.cli.main", *map(str, words)]


def test_a_terminal_is_asked_and_no_is_no(model: Path, tmp_path: Path, own_home: Path) -> None:
    ours, theirs = pty.openpty()
    left = {k: v for k, v in os.environ.items() if k not in {environment.PYTHON, environment.SOURCE}}
    with subprocess.Popen(command("convert", model, "-o", tmp_path / "m.gguf"), stdin=theirs, stdout=theirs,
                          stderr=theirs, env=left, start_new_session=True) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"n\n")
        assert process.wait(timeout=60) == 1
    os.close(ours)
    assert b"torch==" in said
    assert not (own_home / "converter").exists()
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.usefixtures("converter")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny-lm", test_sleeps=60)
    place = tmp_path / "out"
    place.mkdir()
    with subprocess.Popen(command("convert", model, "-o", place / "m.gguf"), stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not list(place.glob("*.partial/made/*.gguf")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert files(place) == []


def test_every_class_is_listed() -> None:
    done = run("convert", "--list-architectures", "--json")
    rows = {row["name"]: row for row in json.loads(done.output)}
    assert rows.keys() == {*BY_CLASS, *TEXT}
    assert {name for name, row in rows.items() if row["converter"] == "native"} == set(BY_CLASS)
    assert rows["OrionForCausalLM"] == {
        "name": "OrionForCausalLM", "architecture": "orion", "converter": "upstream", "has_projector": False,
    }  # fmt: skip
    text = run("convert", "--list-architectures").output
    assert all(name in text for name in rows)
    assert max(len(line.rstrip()) for line in text.splitlines()[:-1]) <= 80
    assert run("convert", "--list-architectures", "-t", "F16").exit_code == 2
    assert run("convert").exit_code == 2


@pytest.mark.usefixtures("converter")
def test_weights_of_what_was_made_are_the_file_s(model: Path, tmp_path: Path) -> None:
    assert run("convert", model, "-t", "F32", "-o", tmp_path / "m.gguf").exit_code == 0
    tensor = GGUFReader(tmp_path / "m.gguf").tensors[0]
    wanted = np.random.default_rng(0).standard_normal(tensor.data.shape).astype(np.float32)
    wanted[0, 0] = 1
    assert np.array_equal(tensor.data, wanted)


def with_eyes(model: Path, converter: Path, **entries: Any) -> Path:
    """Make a model one of a class whose projector upstream alone writes; the small converter gives a prepared one."""
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["UltravoxModel"], "audio_config": {}, "test_projector": "mmproj.gguf", **entries}
    (model / "config.json").write_text(json.dumps(config))
    tensors = {"w": np.ones((4, 8), np.float32), "audio_tower.conv.weight": np.ones((4, 8), np.float32)}
    write_safetensors(model / "model.safetensors", tensors, "BF16")
    write_tiny_projector(converter / "mmproj.gguf", width=64)
    (converter / "none.gguf").write_bytes(b"GGUF")
    return model


def test_a_projector_that_kvant_has_no_kind_of_goes_upstream(converter: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m-F16.gguf"
    out.parent.mkdir()
    done = run("convert", with_eyes(model, converter), "-o", out)
    assert done.exit_code == 0, done.output
    assert files(out.parent) == ["m-F16.gguf", "mmproj-m-F16.gguf"]
    said = " ".join(done.output.split())
    assert "Its projector, idefics3, is written beside it" in said
    assert "The projector is converted by upstream's converter" in said
    alone = run("convert", model, "--mmproj", "-t", "Q8_0", "-o", tmp_path / "alone.gguf", "--json")
    told = json.loads(alone.output)
    assert (told["converter"], told["kind"]) == ("upstream", "idefics3")
    assert (tmp_path / "alone.gguf").read_bytes() == (converter / "mmproj.gguf").read_bytes()


def test_a_projector_that_fails_is_no_note(converter: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m-F16.gguf"
    out.parent.mkdir()
    with_eyes(model, converter, test_projector="none.gguf")
    done = run("convert", model, "-o", out)
    assert done.exit_code == 1
    assert "m-F16.gguf: is written, and its projector is not." in done.output.replace("\n", " ")
    assert files(out.parent) == ["m-F16.gguf"]
    assert run("convert", model, "-o", out, "--no-mmproj", "--overwrite").exit_code == 0
    data = (converter / "mmproj.gguf").read_bytes()
    (converter / "none.gguf").write_bytes(data.replace(b"v.blk.1.ffn_up.weight", b"v.blk.1.ffn_uq.weight"))
    done = run("convert", model, "--mmproj", "-o", tmp_path / "alone.gguf")
    assert done.exit_code == 1
    assert "unable to find tensor v.blk.1.ffn_up.weight" in done.output.replace("\n", " ")
    assert not (tmp_path / "alone.gguf").exists()
