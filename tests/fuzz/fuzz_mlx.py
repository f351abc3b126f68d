"""Fuzz the configuration and weights of MLX directories: `python tests/fuzz/fuzz_mlx.py -runs=100000`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
from kvant.errors import KvantError
from kvant.formats.huggingface import config
from kvant.formats.huggingface.mlx import layers, schemes
from kvant.formats.safetensors import header, reader
from kvant.kernels import mlx, mlx_blocks
from kvant.tensors import n_rows
from raw_files import entry, safetensors

CONFIG = b'{"model_type":"llama","architectures":["LlamaForCausalLM"],"quantization":{"group_size":32,"bits":4%s}}'


def seeds(_: Path) -> list[bytes]:
    """A configuration, a zero byte, and the weights of one layer in several modes."""
    affine = {"a.weight": entry("U32", [2, 4], 0, 32), "a.scales": entry("F16", [2, 1], 32, 36),
              "a.biases": entry("F16", [2, 1], 36, 40)}  # fmt: skip
    byte = {"a.weight": entry("U32", [2, 4], 0, 32), "a.scales": entry("U8", [2, 1], 32, 34)}
    own = b',"a":{"group_size":32,"bits":4,"mode":"affine"}'
    return [
        CONFIG % b"" + b"\0" + safetensors(affine, np.arange(40, dtype=np.uint8).tobytes()),
        CONFIG % own + b"\0" + safetensors(affine, bytes(40)),
        CONFIG % b',"mode":"mxfp4"' + b"\0" + safetensors(byte, bytes(34)),
    ]


def exercise(path: Path) -> None:
    """Read a directory's configuration and weights, and every quantized layer both as floats and as blocks."""
    description, _, data = path.read_bytes().partition(b"\0")
    directory = path.parent / "model"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_bytes(description)
    end = data.rfind(b"}") + 1  # the length of the header is made right, so that what is behind it gets read
    (directory / "model.safetensors").write_bytes(max(0, end - 8).to_bytes(8, "little") + data[8:])
    raw = config.read_config(directory)
    weights = reader.read_safetensors(directory / "model.safetensors")
    paths = layers.layers_of(weights)
    scheme = schemes.read_scheme(raw, paths, "config.json")
    if scheme is None:
        return
    for name in paths:
        try:
            found = layers.same_blocks(weights, name, scheme.layers[name])
        except KvantError:
            continue
        if found is not None:
            found.read_bytes(0, min(2, n_rows(found)))
    for tensor in layers.dequantized(weights, scheme, "directory").values():
        tensor.read_bytes(0, min(2, n_rows(tensor)))


if __name__ == "__main__":
    fuzzing.instrument(config, layers, schemes, header, reader, mlx, mlx_blocks)
    fuzzing.run(exercise, seeds, is_json=True)
