import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import (
    ConverterMissingError,
    EngineError,
    FormatError,
    KvantError,
    OutputExistsError,
    UnsupportedModelError,
)
from kvant.formats.huggingface.projectors.reader import eyes_of, read_projector_of
from kvant.recipes.convert.eyes import eyes_way
from kvant.recipes.convert.projector import Beside, convert_projector, projector_name
from kvant.runtime.converter import environment
from projector_cases import table, write_checkpoint


def _written(case: dict[str, Any], tmp_path: Path) -> Path:
    return write_checkpoint(case, tmp_path / "model")


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda case: case["source"].pop(name)


def _vision(**entries: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda case: case["config"]["vision_config"].update(entries)


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("idefics3", _without("model.vision_model.encoder.layers.1.mlp.fc1.weight"), r"lacks v.blk.1.ffn_up.weight"),
        ("idefics3", _without("model.vision_model.embeddings.patch_embedding.weight"), "lacks v.patch_embd.weight"),
        ("idefics3", lambda case: case["source"].update({"model.vision_model.extra.weight": [4]}), "is no tensor of"),
        ("idefics3", _vision(intermediate_size=99), "is not as vision_config says"),
        ("idefics3", _vision(num_hidden_layers=10**6), "num_hidden_layers is 1000000"),
        ("idefics3", lambda case: case["config"].update(vision_config=3), "vision_config is 3, not an object"),
        ("idefics3", lambda case: case["config"].update(architectures=["GPT9"]), "'GPT9' has no projector that kvant"),
        ("mistral3", _vision(model_type="clip_vision_model"), "sees by the encoder 'clip_vision_model', not pixtral"),
        ("mistral3", _without("model.language_model.embed_tokens.weight"), "lacks v.token_embd.img_break"),
        ("mistral3", _vision(hidden_act="relu"), "hidden_act is 'relu'"),
        ("qwen3vl", _vision(deepstack_visual_indexes=[0, 77]), r"deepstack_visual_indexes is \[0, 77\]"),
        ("lfm2", lambda case: case["config"].update(vision_feature_layer=-9), "vision_feature_layer is -9"),
        ("lfm2", _vision(patch_size=8), "are no patches of 8"),
        ("gemma4", lambda case: case["config"].update(audio_config={"x": 1}), "hears too"),
    ],
)
def test_what_is_refused(tmp_path: Path, case: str, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    changed = table(case)
    change(changed)
    directory = _written(changed, tmp_path)
    with pytest.raises(KvantError, match=words):
        convert_projector(directory, tmp_path / "out.gguf", converter="native")
    assert not (tmp_path / "out.gguf").exists()


def test_colours_are_needed(tmp_path: Path) -> None:
    directory = _written(table("idefics3"), tmp_path)
    (directory / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5]}))
    with pytest.raises(FormatError, match=r"image_mean is .* not three numbers"):
        convert_projector(directory, tmp_path / "out.gguf")
    (directory / "preprocessor_config.json").unlink()
    inner = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}}
    (directory / "processor_config.json").write_text(json.dumps(inner))
    model, _ = read_projector_of(directory)
    assert [round(x, 6) for x in model.metadata["clip.vision.image_mean"].value] == [0.1, 0.2, 0.3]  # type: ignore[union-attr,arg-type]


def test_the_row_of_a_token_is_needed(tmp_path: Path) -> None:
    directory = _written(table("mistral3"), tmp_path)
    for listed, words in (([], "None"), ([{"content": "[IMG_BREAK]", "id": 99}], "99")):
        (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": listed}))
        with pytest.raises(FormatError, match=rf"its token \[IMG_BREAK\] is {words}, which the embedding of 16 rows"):
            convert_projector(directory, tmp_path / "out.gguf")


def test_the_defaults_of_transformers_are_filled_in(tmp_path: Path) -> None:
    case = table("idefics3")
    del case["config"]["vision_config"]["num_attention_heads"]
    model, _ = read_projector_of(_written(case, tmp_path))
    assert model.metadata["clip.vision.attention.head_count"].value == 16


@pytest.mark.parametrize(
    ("written", "kind", "name"),
    [("a/smol-F16.gguf", "F16", "a/mmproj-smol-F16.gguf"), ("smol-Q8_0.gguf", "F16", "mmproj-smol-F16.gguf"),
     ("smol", "BF16", "mmproj-smol-BF16.gguf"), ("smol-v1.5.gguf", "F32", "mmproj-smol-v1.5-F32.gguf")],
)  # fmt: skip
def test_names_beside(written: str, kind: str, name: str) -> None:
    assert projector_name(Path(written), kind) == Path(name)


def _beside(directory: Path, kind: str = "Q8_0") -> Beside:
    return Beside(directory, kind, converter="auto", install=False)


def test_a_projector_beside_its_model_is_said_or_refused(tmp_path: Path) -> None:
    directory = _written(table("idefics3"), tmp_path)
    told = _beside(directory).write(tmp_path / "m-Q8_0.gguf", overwrite=False, threads=1)
    assert told == (f"Its projector, idefics3, is written beside it: {tmp_path}/mmproj-m-F16.gguf",)
    with pytest.raises(OutputExistsError, match="mmproj-m-F16"):
        _beside(directory).check(tmp_path / "m-Q8_0.gguf", overwrite=False)
    with pytest.raises(EngineError, match=r"m-Q8_0.gguf: is written, and its projector is not. .*mmproj-m-F16"):
        _beside(directory).write(tmp_path / "m-Q8_0.gguf", overwrite=False, threads=1)
    assert _beside(tmp_path).write(tmp_path / "m.gguf", overwrite=False, threads=1) == ()
    assert eyes_of(tmp_path) is None
    with pytest.raises(UnsupportedModelError):
        read_projector_of(_text_alone(tmp_path))


def test_what_keeps_a_projector_from_being_written_is_known_before(tmp_path: Path) -> None:
    case = table("idefics3")
    case["source"].pop("model.vision_model.encoder.layers.1.mlp.fc1.weight")
    with pytest.raises(UnsupportedModelError, match=r"cannot be written.*lacks v.blk.1.*--no-mmproj"):
        _beside(_written(case, tmp_path))


def test_one_that_upstream_writes_needs_its_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (environment.PYTHON, environment.SOURCE, environment.AGREED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVANT_HOME", str(tmp_path / "home"))
    case = table("gemma4")
    case["config"]["audio_config"] = {"hidden_size": 8}
    directory = _written(case, tmp_path)
    assert (eyes_way(directory), eyes_way(directory, "native")) == ("upstream", None)
    with pytest.raises(ConverterMissingError, match=r"its projector needs upstream's.*--yes.*--no-mmproj"):
        _beside(directory)
    native = Beside(directory, "F16", converter="native", install=False)
    (said,) = native.write(tmp_path / "m.gguf", overwrite=False, threads=1)
    assert said == "Its eyes or ears are left out: kvant itself writes no projector of this class."


def test_a_model_whose_eyes_were_taken_out_is_said(tmp_path: Path) -> None:
    case = table("idefics3")
    case["source"] = {"lm_head.weight": [4, 4]}
    directory = _written(case, tmp_path)
    assert eyes_way(directory) is None
    (said,) = _beside(directory).write(tmp_path / "m.gguf", overwrite=False, threads=1)
    assert "the weights hold none" in said


def _text_alone(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path / "text"
