"""A tensor that families may be without, missing in one layer alone: refused, since the engine would not miss it."""

from pathlib import Path

import pytest

from family_cases import table, write_checkpoint
from kvant.errors import FormatError
from kvant.formats.huggingface.reader import read_huggingface


@pytest.mark.parametrize(
    ("case", "gone", "said"),
    [
        ("ernie4_5_moe", "model.layers.2.mlp.moe_statics.e_score_correction_bias", "layer 2 has no exp_probs_b.bias"),
        ("gemma4-e2b", "model.language_model.layers.7.layer_scalar", "layer 7 has no layer_output_scale.weight"),
    ],
)
def test_it_is_refused_by_layer_and_name(tmp_path: Path, case: str, gone: str, said: str) -> None:
    made = table(case)
    del made["source"][gone]
    with pytest.raises(FormatError, match=f"{said}, which layer .* has. Download all"):
        read_huggingface(write_checkpoint(made, tmp_path / case))


@pytest.mark.parametrize("case", ["bert", "xlm-roberta", "nomic-bert"])
def test_embeddings_of_token_types_are_missed(tmp_path: Path, case: str) -> None:
    made = table(case)
    name = next(name for name in made["source"] if "token_type_embeddings" in name)
    del made["source"][name]
    with pytest.raises(
        FormatError, match=r"1 tensor is missing: embeddings\.token_type_embeddings\.weight\. Download all"
    ):
        read_huggingface(write_checkpoint(made, tmp_path / case))
