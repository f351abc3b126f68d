"""`kvant run --image` from the outside, with a tiny random model that has eyes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvant.formats.gguf.companions import read_projector
from kvant.recipes.chat import Chat, projector_of
from kvant.recipes.convert.convert import convert
from kvant.testing.pictures import disc, wav, write_tiny_ears, write_tiny_projector
from kvant.testing.tiny_models import write_tiny_model
from projector_cases import table, write_checkpoint

pytestmark = pytest.mark.heavy
KVANT = [sys.executable, "-m", "kvant.cli.main", "run"]
GREEDY: dict[str, Any] = {"temperature": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eyes")
    write_tiny_model("llama", root / "model", tokenizer="pictures")
    convert(root / "model", root / "tiny.gguf", to="gguf")
    write_tiny_projector(root / "mmproj-tiny-F16.gguf")
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 160, 0))):
        (root / f"{name}.png").write_bytes(disc(colour))
    (root / "tone.wav").write_bytes(wav())
    return root


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*KVANT, *map(str, arguments)]
    return subprocess.run(command, input="", capture_output=True, text=True, timeout=120, check=False)


def test_a_picture_from_the_command_line(root: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "5", "--json", "--image", root / "red.png")
    made = run(root / "tiny.gguf", "What is it?", *options)
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)
    assert answer["media"] == [str(root / "red.png")]
    with Chat(
        root / "tiny.gguf", projector=projector_of(root / "tiny.gguf", None), sampling=GREEDY, max_tokens=5
    ) as chat:
        chat.attach("image", [root / "red.png"])
        red = chat.ask("What is it?")
        assert (red.text, red.n_prompt) == (answer["text"], answer["n_prompt"])
        chat.clear()
        chat.attach("image", [root / "green.png"])
        assert chat.ask("What is it?").text != red.text
        assert chat.ask("And now?").n_prompt > red.n_prompt  # the picture is still there
        chat.clear()
        assert chat.ask("What is it?").n_prompt < red.n_prompt - 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny.gguf", "--image", "none.png"), "none.png: cannot be read (No such file"),
        (("tiny.gguf", "--image", "tone.wav"), "is RIFF (WebP, WAV or AVI), which the engine does not decode"),
        (("tiny.gguf", "--audio", "tone.wav"), "mmproj-tiny-F16.gguf: takes no sounds"),
        (("tiny.gguf", "--image", "red.png", "--raw"), "--raw: continues a text"),
        (("tiny.gguf", "--image", "red.png", "--mmproj", "tiny.gguf"), "is a llama model, no projector"),
        (("tiny.gguf", "--image", "red.png", "--mmproj", "nowhere.gguf"), "nowhere.gguf"),
        (("model/alone.gguf", "--image", "red.png"), "there is no mmproj-*.gguf beside it"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(root: Path, arguments: tuple[str, ...], message: str) -> None:
    alone = root / "model" / "alone.gguf"
    if not alone.exists():
        alone.hardlink_to(root / "tiny.gguf")
    given = [item if item.startswith("--") else root / item for item in arguments]
    made = run(given[0], "What is it?", *given[1:])
    assert made.returncode == 1
    assert message in made.stderr.replace("\n", " ")


def test_a_projector_that_was_converted_here_sees(root: Path, tmp_path: Path) -> None:
    source = write_checkpoint(table("idefics3"), tmp_path / "model")
    command = [sys.executable, "-m", "kvant.cli.main", "convert", str(source), "--mmproj", "-o"]
    made = subprocess.run([*command, str(tmp_path / "mmproj.gguf")], capture_output=True, text=True, check=True)
    assert "projector idefics3, 38 tensors" in made.stdout
    with Chat(
        root / "tiny.gguf", projector=read_projector(tmp_path / "mmproj.gguf"), sampling=GREEDY, max_tokens=5
    ) as chat:
        said = []
        for name in ("red", "green"):
            chat.clear()
            chat.attach("image", [root / f"{name}.png"])
            said.append(chat.ask("What is it?").text)
    assert said[0] != said[1]


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ears")
    write_tiny_model("llama", root / "model", tokenizer="pictures", max_position_embeddings=2048)
    convert(root / "model", root / "tiny.gguf", to="gguf")
    write_tiny_ears(root / "mmproj-tiny-F16.gguf")
    for name, hertz in (("low", 220), ("high", 3000)):
        (root / f"{name}.wav").write_bytes(wav(seconds=28, hertz=hertz))
    (root / "red.png").write_bytes(disc((255, 0, 0)))
    (root / "song.flac").write_bytes(b"fLaC" + bytes(200))
    (root / "cut.wav").write_bytes(wav()[:30])
    return root


def test_a_sound_from_the_command_line(ears: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "5", "--json", "--context", "1024")
    made = run(ears / "tiny.gguf", "What is it?", *options, "--audio", ears / "low.wav")
    assert made.returncode == 0, made.stderr
    low = json.loads(made.stdout)
    assert low["media"] == [str(ears / "low.wav")]
    assert low["n_prompt"] > 700  # half a minute is heard
    found = projector_of(ears / "tiny.gguf", None, hears=True)
    with Chat(ears / "tiny.gguf", projector=found, sampling=GREEDY, max_tokens=5, context=1024) as chat:
        said = []
        for name in ("low", "high"):
            chat.clear()
            chat.attach("audio", [ears / f"{name}.wav"])
            said.append(chat.ask("What is it?").text)
    assert said[0] == low["text"] != said[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image", "red.png"), "mmproj-tiny-F16.gguf: takes no pictures"),
        (("--audio", "red.png"), "red.png: is a picture (PNG), which is not taken. Send WAV or MP3"),
        (("--audio", "song.flac"), "song.flac: is"),
        (("--audio", "cut.wav"), "cut.wav"),
    ],
)
def test_sounds_that_are_refused(ears: Path, arguments: tuple[str, ...], message: str) -> None:
    given = [item if item.startswith("--") else ears / item for item in arguments]
    made = run(ears / "tiny.gguf", "What is it?", *given)
    assert made.returncode == 1
    assert message in made.stderr.replace("\n", " ")
