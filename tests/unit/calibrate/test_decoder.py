import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kvant.calibrate.decoder import GROUPS, Decoder
from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.formats.open import open_model
from kvant.metadata import string
from kvant.model import Model
from kvant.recipes.convert.convert import convert
from kvant.testing.tiny_models import write_tiny_model

TOKENS = np.random.default_rng(0).integers(3, 500, (2, 16), dtype=np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(write_tiny_model("llama", tmp_path_factory.mktemp("model"), num_hidden_layers=2))


def test_a_quantized_file_runs_with_its_decoded_weights(tmp_path: Path) -> None:
    source = write_tiny_model("qwen2", tmp_path / "hf", num_hidden_layers=1)
    convert(source, tmp_path / "q8.gguf", to="gguf", type="Q8_0")
    exact, rounded = (Decoder(open_model(path)).logits(TOKENS) for path in (source, tmp_path / "q8.gguf"))
    assert 0 < float((exact - rounded).abs().max()) < 0.5  # of a standard deviation of 3.3


def test_an_observer_sees_each_group_and_may_replace_its_weights(model: Model) -> None:
    decoder, seen = Decoder(model), []
    weights = decoder.weights(0)

    def observe(names: tuple[str, ...], x: torch.Tensor) -> None:
        seen.append((names, x.shape[-1]))
        for name in names:
            weights[name] = torch.zeros_like(weights[name])

    hidden = decoder.embed(TOKENS)
    torch.testing.assert_close(decoder.steps(0, hidden, weights, observe), hidden)
    assert [names for names, _ in seen] == [tuple(f"blk.0.{n}.weight" for n in group) for group in GROUPS]
    assert [width for _, width in seen] == [256, 256, 256, 512]


def test_later_tokens_do_not_change_earlier_logits(model: Model) -> None:
    decoder = Decoder(model)
    torch.testing.assert_close(decoder.logits(TOKENS)[:, :9], decoder.logits(TOKENS[:, :9]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gemma3", "phi3", "granite", "smollm3"])
def test_other_architectures_are_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError, match="llama, qwen2, qwen3"):
        Decoder(open_model(write_tiny_model(family, tmp_path)))


def test_what_would_be_computed_wrongly_is_refused(model: Model) -> None:
    norm = model.tensors["output_norm.weight"]
    without = {name: tensor for name, tensor in model.tensors.items() if name != "blk.1.ffn_up.weight"}
    for tensors, message in (
        (without, "blk.1.ffn_up.weight is missing"),
        ({**model.tensors, "blk.1.ffn_gate_inp.weight": norm}, "blk.1.ffn_gate_inp.weight is not known"),
    ):
        with pytest.raises(UnsupportedFormatError, match=message):
            Decoder(dataclasses.replace(model, tensors=tensors))
    yarn = {**model.metadata, "llama.rope.scaling.type": string("yarn")}
    with pytest.raises(UnsupportedFormatError, match="rotary scaling yarn"):
        Decoder(dataclasses.replace(model, metadata=yarn))


def test_tokens_outside_the_vocabulary_are_refused(model: Model) -> None:
    for wrong in (-1, 512):
        with pytest.raises(ValueRangeError, match="leave the vocabulary of 512"):
            Decoder(model).embed(np.array([[5, wrong]], np.int32))


def test_the_command_line_does_not_import_torch() -> None:
    code = "import sys, kvant.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_torch_gradients_name_the_extra_and_nothing_else_misses_it() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)\n"
        "from kvant.recipes.measure.calibration import check_way\n"
        "import kvant.recipes.measure.importance\n"
        "check_way('engine')\n"
        "check_way('gradients')"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (
        "torch: is not installed, and gradients need it. Install it with: pip install 'kvant[calibrate]'"
        in ended.stderr
    )
    assert ended.stderr.count("Traceback") == 1
