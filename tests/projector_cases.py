"""Tiny random checkpoints of every kind of projector, from the tables under golden/projectors; see family_cases."""

import json
from pathlib import Path
from typing import Any

from family_cases import random_tensor
from kvant.testing.tiny_models import write_safetensors

TABLES = Path(__file__).resolve().parent / "golden" / "projectors"
CASES = tuple(sorted(path.stem for path in TABLES.glob("*.json")))
PICTURES = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"longest_edge": 128}}


def table(case: str) -> dict[str, Any]:
    """Return the table of a case."""
    found: dict[str, Any] = json.loads((TABLES / f"{case}.json").read_text(encoding="utf-8"))
    return found


def write_checkpoint(case: dict[str, Any], directory: Path) -> Path:
    """Write the checkpoint of a table, float32, without its language model; the same table gives the same bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(case["config"], indent=1))
    (directory / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    added = [{"content": "[IMG_BREAK]", "id": 8}]  # upstream's converter asks for it
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (directory / "tokenizer_config.json").write_text("{}")
    values = {name: random_tensor(name, shape) for name, shape in case["source"].items()}
    write_safetensors(directory / "model.safetensors", values, "F32")
    return directory
