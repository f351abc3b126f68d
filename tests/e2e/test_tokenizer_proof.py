"""What measures a variant also proves its tokenizer, against the source's own files and not a conversion of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.open import open_model
from kvant.metadata import string, u32
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.evaluate import evaluate
from kvant.recipes.measure.parity import Parity, parity
from kvant.testing.tiny_models import write_tiny_model

FAST: Any = {"context": 64, "chunks": 2, "threads": 1, "speed": False, "floors": False}
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("proof") / "little-llama", tokenizer="smollm")


@pytest.fixture(scope="module")
def variant(tiny: Path) -> Path:
    file = tiny.with_name("little.gguf")
    convert(tiny, file, to="gguf", type="Q8_0")
    return file


def changed(source: Path, target: Path, change: Change) -> Path:
    """A copy of a model with another tokenizer.json."""
    shutil.copytree(source, target)
    path = target / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return target


def permute(document: dict[str, Any]) -> None:
    """Letters get each other's ids: every count stays."""
    vocab = document["model"]["vocab"]
    letters = [text for text in vocab if len(text) == 1 and text.isascii() and text.isalpha()]
    ids = [vocab[text] for text in letters]
    vocab.update(zip(letters, ids[1:] + ids[:1], strict=True))


def prefix(document: dict[str, Any]) -> None:
    for step in document["pre_tokenizer"]["pretokenizers"]:
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = True


def test_a_faithful_variant_is_proved(tiny: Path, variant: Path) -> None:
    (read,) = evaluate([variant], against=tiny, **FAST).tokenizers

    assert read.is_same, read
    assert read.truth.startswith("tokenizers ")
    assert read.n_texts == read.n_same_texts > 60
    assert read.n_prompts == read.n_same_prompts == 5


def test_a_permuted_vocabulary_is_a_finding(tiny: Path, tmp_path: Path) -> None:
    convert(changed(tiny, tmp_path / "other", permute), tmp_path / "v.gguf", to="gguf", type="Q8_0")

    result = evaluate([tmp_path / "v.gguf"], against=tiny, **FAST)

    (score,), (read,) = result.scores, result.tokenizers
    assert score.kld_mean < 0.01  # all that was looked at before
    assert not read.is_same
    assert read.n_same_texts < read.n_texts / 2
    assert {"token texts", "tokens"} <= {d.what for d in read.differences}


def test_it_stands_out_at_the_command_line(tiny: Path, tmp_path: Path) -> None:
    convert(changed(tiny, tmp_path / "other", permute), tmp_path / "v.gguf", to="gguf", type="Q8_0")
    words = ["evaluate", str(tmp_path / "v.gguf"), "--against", str(tiny), "--context", "64", "--chunks", "2"]

    run = CliRunner().invoke(app, [*words, "--no-speed", "--no-floors", "--threads", "1"])

    assert run.exit_code == 0, run.output
    assert "DIFFER" in run.stdout
    assert "warning: v reads" in run.stdout
    assert "its scores are those of the original's tokens" in run.stdout


def test_a_conversion_that_the_engine_cannot_follow_is_a_finding(tiny: Path, tmp_path: Path) -> None:
    source = changed(tiny, tmp_path / "prefixed", prefix)
    convert(source, tmp_path / "p.gguf", to="gguf", type="Q8_0")

    run = CliRunner().invoke(app, ["parity", str(tmp_path / "p.gguf"), "--against", str(source), "--json"])

    assert run.exit_code == 1
    (read,) = json.loads(run.stdout)
    assert read["n_same_texts"] < read["n_texts"]
    assert "tokens around a text" in {d["what"] for d in read["differences"]}


def test_truncation_and_padding_of_a_tokenizer_do_not_count(tiny: Path, variant: Path, tmp_path: Path) -> None:
    def cut(document: dict[str, Any]) -> None:
        document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        document["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
                               "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip

    assert parity([variant], against=changed(tiny, tmp_path / "cut", cut))[0].is_same


def rewritten(source: Path, target: Path, **metadata: Any) -> Path:
    model = open_model(source)
    write_gguf(target, {**model.metadata, **metadata}, list(model.tensors.values()))
    return target


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"tokenizer.chat_template": string("{{ messages[0]['content'] }}")}, "chat template"),
        ({"tokenizer.ggml.pre": string("qwen2")}, "pre-tokenizer"),
        ({"tokenizer.ggml.eos_token_id": u32(1)}, "EOS"),
    ],
)
@pytest.mark.parametrize("base", ["directory", "gguf"])
def test_what_a_file_says_of_its_tokenizer_is_compared(
    base: str, metadata: dict[str, Any], what: str, tiny: Path, variant: Path, tmp_path: Path
) -> None:
    other = rewritten(variant, tmp_path / "other.gguf", **metadata)

    (read,) = parity([other], against=tiny if base == "directory" else variant)

    assert what in {d.what for d in read.differences}
    assert read.truth.split()[0] == ("tokenizers" if base == "directory" else "llama.cpp")


def test_another_name_of_the_same_pre_tokenizer_is_none(tiny: Path, variant: Path, tmp_path: Path) -> None:
    other = rewritten(variant, tmp_path / "other.gguf", **{"tokenizer.ggml.pre": string("command-r")})

    assert open_model(variant).get("tokenizer.ggml.pre") == "smollm"
    assert parity([other], against=tiny)[0].is_same


def test_white_space_beside_added_tokens_is_compared(tiny: Path, variant: Path, tmp_path: Path) -> None:
    def strip(document: dict[str, Any]) -> None:
        document["added_tokens"][1]["rstrip"] = True

    (read,) = parity([variant], against=changed(tiny, tmp_path / "strip", strip))

    assert read.differences[0].what == "tokens"


def test_what_could_not_be_compared_is_no_proof() -> None:
    assert not Parity(path="x", engine="", not_compared="no engine").is_same
