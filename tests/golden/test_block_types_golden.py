"""Blocks once written must decode to the same weights for ever, and the same weights encode to the same bytes.

`blocks.json` holds, per block type, one row: its bytes, the first decoded weights as C hexadecimal floats, and the
SHA-256 of all decoded weights as little-endian float32. The row came from `weights()`, of codebook types with an
importance of ones, and encoding that again must give the bytes. Never regenerate an entry; add one for a new type with
`python tests/golden/test_block_types_golden.py NAME`.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import kvant
from kvant.dtypes import BLOCK_TYPES, Family
from kvant.kernels import _ext, isa, reference

FILE = Path(__file__).parent / "blocks.json"
GOLDEN: dict[str, dict[str, object]] = json.loads(FILE.read_text()) if FILE.is_file() else {}
N = 256
N_SHOWN = 8


def weights() -> np.ndarray:
    """A row without a random generator: eight runs of 32, each of another size, every value exact in float32."""
    k = np.arange(N, dtype=np.int64)
    return (((k * k * 37 + k * 11) % 255 - 127) * 2.0 ** (-7 - k // 32)).astype(np.float32)[None]


def entry(blocks: np.ndarray, name: str) -> dict[str, object]:
    decoded = kvant.decode(blocks, name, N)
    return {
        "bytes": blocks.tobytes().hex(),
        "first_weights": [float(w).hex() for w in decoded[0, :N_SHOWN]],
        "sha256": hashlib.sha256(decoded.astype("<f4").tobytes()).hexdigest(),
    }


def encoded(name: str) -> np.ndarray:
    codebook = BLOCK_TYPES[name].family == Family.CODEBOOK
    return kvant.encode(weights(), name, importance=np.ones(N, np.float32) if codebook else None)


def blocks_of(name: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(str(GOLDEN[name]["bytes"])), np.uint8).reshape(1, -1)


@pytest.mark.parametrize("level", isa.levels())
@pytest.mark.parametrize("name", GOLDEN)
def test_stored_bytes_decode_to_the_stored_weights(name: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_ISA", level)
    assert entry(blocks_of(name), name) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_twin_decodes_the_stored_bytes(name: str) -> None:
    decoded = reference.decode(blocks_of(name), name, N)
    assert hashlib.sha256(decoded.astype("<f4").tobytes()).hexdigest() == GOLDEN[name]["sha256"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_same_weights_encode_to_the_stored_bytes(name: str) -> None:
    assert np.array_equal(encoded(name), blocks_of(name))


def test_every_type_that_decodes_is_stored() -> None:
    assert set(GOLDEN) == {name for name, *_, decodes in _ext.types() if decodes}


def main(names: list[str]) -> None:
    """Add the types named that have no entry yet."""
    for name in names:
        if name in GOLDEN:
            raise SystemExit(f"{name}: is stored already, and stored rows never change.")
        GOLDEN[name] = entry(encoded(name), name)
    FILE.write_text(json.dumps({t: GOLDEN[t] for t in BLOCK_TYPES if t in GOLDEN}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
