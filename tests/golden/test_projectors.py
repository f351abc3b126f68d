"""Every kind of projector against upstream's converter, by committed tables: names, order, types, bytes, metadata."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from family_cases import digest, random_tensor
from kvant.formats.gguf.companions import read_projector
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.huggingface.projectors.kinds import KINDS
from kvant.metadata import Value
from kvant.recipes.convert.projector import convert_projector
from kvant.runtime.process import EngineProcess
from kvant.tensors import n_rows
from projector_cases import CASES, table, write_checkpoint


@pytest.mark.parametrize("case", CASES)
def test_tensors_and_metadata_are_upstreams(case: str, tmp_path: Path) -> None:
    wanted = table(case)
    out = tmp_path / "mmproj.gguf"
    convert_projector(write_checkpoint(wanted, tmp_path / "tiny"), out)
    model = read_gguf(out)
    found = {
        t.name: [t.block_type.name, list(t.shape), digest(t.read_bytes(0, n_rows(t)).tobytes())]
        for t in model.tensors.values()
    }
    embedding = next((name for name in wanted["source"] if name.endswith("embed_tokens.weight")), None)
    if embedding is not None:  # upstream's converter leaves out what the engine asks for
        row = random_tensor(embedding, wanted["source"][embedding])[8]
        assert found.pop("v.token_embd.img_break") == ["F32", [256], digest(row.astype("<f4").tobytes())]
    assert list(found) == list(wanted["tensors"])
    assert found == wanted["tensors"]
    assert {key: _plain(value) for key, value in model.metadata.items()} == wanted["metadata"]
    assert read_projector(out).width == 256  # by which it is found beside its model
    assert list(model.metadata) == list(wanted["metadata"])


def _plain(value: Value) -> Any:
    found = value.value
    if isinstance(found, np.ndarray):
        return found.tolist()
    return float(np.float32(found)) if isinstance(found, float) else found


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES)
def test_the_engine_opens_it(case: str, tmp_path: Path) -> None:
    convert_projector(write_checkpoint(table(case), tmp_path / "tiny"), tmp_path / "mmproj.gguf")
    with EngineProcess() as engine:
        assert engine.open_projector(tmp_path / "mmproj.gguf").sees


def test_every_kind_has_a_table() -> None:
    assert {table(case)["metadata"].get("clip.projector_type", "gemma4v") for case in CASES} == {e.kind for e in KINDS}
