"""Hashes of what every native encoder makes of fixed rows: the same on every processor, for ever.

`encoders.json` was written on x86-64, where tests/parity holds the encoders to ggml's bytes; on ARM it is the oracle,
because builds of ggml differ from each other there. Never regenerate an entry; add one for a new type with
`python tests/golden/test_encoder_hashes.py NAME`.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.kernels import _ext, isa

FILE = Path(__file__).parent / "encoders.json"
GOLDEN: dict[str, dict[str, str]] = json.loads(FILE.read_text()) if FILE.is_file() else {}
KINDS = {
    name: ["plain"] * plain + ["weighted"] * weighted
    for name, _, _, _, plain, weighted, _ in _ext.types()
    if plain or weighted
}
ROWS, N = 37, 768


def weights() -> tuple[np.ndarray, np.ndarray]:
    """Rows whose tails grow from uniform to heavy, and an importance with zeros, by integers and single products."""
    state = np.arange(1, ROWS * N + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(29)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    uniform = ((state >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).reshape(ROWS, N)
    x = uniform.copy()
    for row in range(ROWS):
        for _ in range(row % 6):
            x[row] *= np.abs(uniform[row])
    x[5] = 0
    x[6] = np.float32(0.375)
    x[7, ::3] = 0
    importance = uniform[0] * uniform[0]
    importance[::7] = 0
    return x, importance


def digest(name: str, kind: str) -> str:
    x, importance = weights()
    encoded = kvant.encode(x, name, importance=importance if kind == "weighted" else None)
    return hashlib.sha256(encoded.tobytes()).hexdigest()


@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", KINDS)
def test_encoders_make_the_stored_bytes(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    assert {kind: digest(name, kind) for kind in KINDS[name]} == GOLDEN[name]


if __name__ == "__main__":
    for added in sys.argv[1:]:
        assert added not in GOLDEN, f"{added} is stored already"
        GOLDEN[added] = {kind: digest(added, kind) for kind in KINDS[added]}
    FILE.write_text(json.dumps(GOLDEN, indent=1) + "\n")
