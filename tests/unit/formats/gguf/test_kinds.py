"""GGUF files that are no models are refused by what they are, and can be looked at."""

from pathlib import Path

import numpy as np
import pytest

from kvant.dtypes import F32
from kvant.errors import UnsupportedFormatError
from kvant.formats.gguf.writer import write_gguf
from kvant.formats.open import open_model
from kvant.metadata import string
from kvant.recipes.inspect.inspect import inspect
from kvant.tensors import array_tensor


@pytest.mark.parametrize("is_said", [True, False])
@pytest.mark.parametrize(
    ("kind", "architecture", "name", "words"),
    [
        ("adapter", "llama", "blk.0.attn_q.weight.lora_a", "is a LoRA adapter, not a model.*merge_and_unload"),
        ("imatrix", "", "blk.0.attn_q.weight.in_sum2", "is an importance file, not a model. Give it with --imatrix"),
        ("mmproj", "clip", "v.patch_embd.weight", r"is a projector .*\(mmproj\).*Give the language model"),
    ],
)
def test_what_is_no_model(kind: str, architecture: str, name: str, words: str, is_said: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.gguf"
    metadata = {"general.type": string(kind)} if is_said else {}
    metadata |= {"general.architecture": string(architecture)} if architecture else {}
    write_gguf(path, metadata, [array_tensor(name, np.ones((4, 32), np.float32), F32)])
    with pytest.raises(UnsupportedFormatError, match=words):
        open_model(path)
    assert any(f"of the kind {kind}" in warning for warning in inspect(path).warnings)
    assert kind != "mmproj" or open_model(path, kinds=("model", "mmproj")).tensors
