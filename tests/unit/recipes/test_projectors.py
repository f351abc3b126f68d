"""The projector that goes with a model: which, what it takes, and how it comes to lie beside it."""

import json
from pathlib import Path

import pytest

from kvant.devices.memory import PICTURE_BYTES
from kvant.errors import OutputExistsError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.gguf.companions import read_projector
from kvant.formats.gguf.reader import read_gguf
from kvant.recipes.convert.convert import convert
from kvant.recipes.convert.projector import convert_projector
from kvant.recipes.projectors import companion_of, deliver
from kvant.runtime.process import EngineProcess
from kvant.testing.pictures import write_tiny_projector
from kvant.testing.tiny_models import write_tiny_model
from projector_cases import table, write_checkpoint


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    return write_checkpoint(table("idefics3"), tmp_path / "model")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_tiny_model("llama", tmp_path / "text")
    convert(tmp_path / "text", tmp_path / "tiny-F16.gguf", to="gguf")
    return tmp_path / "tiny-F16.gguf"


@pytest.mark.parametrize("kind", [None, "F32", "q8_0"])
def test_a_directory_s_is_known_to_the_byte_before_it_is_made(eyes: Path, kind: str | None, tmp_path: Path) -> None:
    found = companion_of(eyes, kind)
    assert found is not None
    assert (found.way, found.kind, found.type, found.is_estimate) == (
        "native",
        "idefics3",
        (kind or "F16").upper(),
        False,
    )
    made = convert_projector(eyes, tmp_path / "made.gguf", type=kind or "F16")
    assert found.size_bytes == made.size_bytes
    seen = read_projector(Path(made.output))
    assert found.memory_bytes == made.size_bytes + 4 * 8 * seen.patches * seen.hidden + PICTURE_BYTES
    out = deliver(found, tmp_path / "out.gguf", overwrite=False, threads=1)
    assert out.name == f"mmproj-out-{found.type}.gguf"
    assert out.read_bytes() == Path(made.output).read_bytes()


def test_one_beside_a_file_stays_as_it_is_unless_another_type_is_asked_for(file: Path, tmp_path: Path) -> None:
    assert companion_of(file) is None
    beside = write_tiny_projector(tmp_path / "mmproj-tiny-F16.gguf")
    found = companion_of(file)
    assert found is not None
    assert (found.way, found.type, found.size_bytes) == ("copy", "F16", beside.stat().st_size)
    place = tmp_path / "out"
    place.mkdir()
    out = deliver(found, place / "tiny.gguf", overwrite=False, threads=1)
    assert (out.name, out.read_bytes()) == ("mmproj-tiny-F16.gguf", beside.read_bytes())
    assert not out.samefile(beside)
    smaller = companion_of(file, "q8_0")
    assert smaller is not None
    assert (smaller.way, smaller.type) == ("quantize", "Q8_0")
    made = deliver(smaller, place / "tiny.gguf", overwrite=False, threads=1)
    assert made.stat().st_size == smaller.size_bytes < found.size_bytes
    assert {t.block_type.name for t in read_gguf(made).tensors.values()} == {"F32", "Q8_0"}
    with EngineProcess() as engine:
        assert engine.open_projector(made).sees
    out.write_bytes(b"other")
    with pytest.raises(OutputExistsError):
        deliver(found, place / "tiny.gguf", overwrite=False, threads=1)


def test_what_is_not_wished_for(eyes: Path, tmp_path: Path) -> None:
    assert companion_of(eyes, "none") is None
    with pytest.raises(UnsupportedFormatError, match=r"'q4_0' is no type of it\. Use one of F32"):
        companion_of(eyes, "q4_0")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    case = table("idefics3")
    case["source"].pop("model.vision_model.encoder.layers.1.mlp.fc1.weight")
    broken = write_checkpoint(case, tmp_path / "broken")
    with pytest.raises(Exception, match=r"lacks v.blk.1.ffn_up.weight"):
        companion_of(broken)
    case = table("mistral3")
    case["config"]["vision_config"]["hidden_act"] = "relu"
    with pytest.raises(UnsupportedModelError, match=r"hidden_act is 'relu'.*--mmproj none"):
        companion_of(write_checkpoint(case, tmp_path / "other"))


def test_one_of_upstream_s_is_an_estimate_where_nothing_may_be_made(tmp_path: Path) -> None:
    case = table("gemma4")
    case["config"]["audio_config"] = {"hidden_size": 8}
    found = companion_of(write_checkpoint(case, tmp_path / "model"), only_estimate=True)
    assert found is not None
    assert (found.way, found.is_estimate) == ("upstream", True)
    assert 0 < found.size_bytes < found.memory_bytes
    assert found.in_words().startswith("about ")
