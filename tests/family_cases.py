"""Tiny random checkpoints of every family, from the tables under golden/families: no torch is needed to make them.

A table holds a configuration, names and shapes of the tensors that transformers saves of it, and what upstream's
converter made of the checkpoint written here: names, types, shapes and hashes of tensors, and metadata. `factors`
scale tensors whose names hold a text, where the engine computes a part of such a tiny model coarsely; `note` says why.
`words` are added to the tokenizer, and `card` is the README.
tools/family_goldens.py makes the tables.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from kvant.testing.tiny_models import write_safetensors, write_tokenizer

TABLES = Path(__file__).resolve().parent / "golden" / "families"
CASES = tuple(sorted(path.stem for path in TABLES.glob("*.json")))


def table(case: str) -> dict[str, Any]:
    """Return the table of a case."""
    found: dict[str, Any] = json.loads((TABLES / f"{case}.json").read_text(encoding="utf-8"))
    return found


def write_checkpoint(case: dict[str, Any], directory: Path) -> Path:
    """Write the checkpoint of a table, float32; the same table gives the same bytes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(case["config"], indent=1))
    write_tokenizer(directory, case.get("tokenizer", "qwen2"))
    if "card" in case:
        (directory / "README.md").write_text(case["card"])
    if "words" in case:
        add_words(directory / "tokenizer.json", case["words"])
    values = {name: random_tensor(name, shape) for name, shape in case["source"].items()}
    for part, factor in case.get("factors", {}).items():
        values |= {name: tensor * np.float32(factor) for name, tensor in values.items() if part in name}
    write_safetensors(directory / "model.safetensors", values, case.get("dtype", "F32"))
    for name, document in case.get("files", {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(document, indent=1))
    for folder, shape in case.get("dense", {}).items():
        weights = {"linear.weight": random_tensor(f"{folder}.weight", shape)}
        write_safetensors(directory / folder / "model.safetensors", weights, "F32")
    return directory


def add_words(path: Path, words: list[str]) -> None:
    """Add tokens of whole words after those of a tokenizer."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    first = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [{"id": first + i, "content": word, **plain} for i, word in enumerate(words)]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def random_tensor(name: str, shape: list[int]) -> np.ndarray:
    """Return random values of a tensor, float32, by its name: norms and scales near 1, unit gain, slow decays."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape)
    if name.endswith("A_log"):
        values = np.log(rng.uniform(1, 8, shape))
    elif name.endswith(("dt_bias", "dt_proj.bias")):
        values = rng.uniform(-4, -1, shape)
    elif ("norm" in name and not name.endswith("bias")) or name.endswith(("scalar", "scale")):
        values = 1 + 0.2 * normal
    elif len(shape) < 2:
        values = 0.1 * normal
    elif "embed" in name:
        values = normal
    else:
        values = normal / np.sqrt(shape[-1])
    return np.asarray(values, np.float32)


def digest(data: bytes) -> str:
    """Return the first 16 digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
