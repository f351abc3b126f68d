"""A decoder's export, read once: its graph, its matrices and their rows, from which every variant is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvant.evaluate.base import file_hash
from kvant.formats.onnx.decoder import Decoder, read_decoder
from kvant.formats.onnx.halves import halve
from kvant.formats.onnx.reader import read_onnx
from kvant.formats.onnx.weights import Weight, blank_tensors, find_weights, replace
from kvant.formats.onnx.writer import blank, dtype_of
from kvant.kernels.nbits import nbits_type
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.targets.onnx.export import exported
from kvant.recipes.targets.onnx.plan import Dtype
from kvant.recipes.targets.onnx.rows import Rows

if TYPE_CHECKING:
    import onnx

GRAPH = "model.onnx"
"""Name of a variant's graph; its weights lie beside it."""

DTYPES: dict[Dtype, str] = {"F32": "float32", "F16": "float16"}
"""NumPy dtype of a variant's floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A checked export.

    Attributes:
        decoder: Its directory.
        bare: Its graph without initializers.
        weights: Its matrices.
        rows: What reads them.
    """

    decoder: Decoder
    bare: "onnx.ModelProto"
    weights: tuple[Weight, ...]
    rows: Rows

    def graph(self, types: Mapping[str, str], notes: Mapping[str, str], dtype: Dtype) -> "onnx.ModelProto":
        """Return the graph of a variant, without initializers.

        Args:
            types: Blocks by initializer, of the matrices that get other ones.
            notes: What it says of itself, by key.
            dtype: Type of all floats.
        """
        made = type(self.bare)()
        made.CopyFrom(self.bare)
        kept = {entry.key: entry.value for entry in made.metadata_props} | dict(notes)
        del made.metadata_props[:]
        for key, value in kept.items():
            made.metadata_props.add(key=key, value=value)
        for weight in self.weights:
            if weight.name in types:
                replace(made, weight, nbits_type(types[weight.name]))
        if dtype == "F16":
            halve(made)
        return made

    def blanks(self, types: Mapping[str, str], dtype: Dtype) -> dict[str, np.ndarray]:
        """Return a variant's initializers in file order, as arrays that take no memory."""
        floats = DTYPES[dtype]
        found = {}
        for name, tensor in self.rows.tensors.items():
            if name not in types:
                kind = dtype_of(tensor)
                found[name] = blank(tensor.dims, floats if kind == "float32" else kind)
        for weight in self.weights:
            if weight.name in types:
                found |= blank_tensors(weight, nbits_type(types[weight.name]), floats)
        return found

    @property
    def sha256(self) -> str:
        """Hash of the graph."""
        return file_hash(self.decoder.file)

    @property
    def stamp(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change of every file, by name."""
        found = [(file.name, file.stat()) for file in sorted(self.decoder.file.parent.iterdir())]
        return [(name, status.st_size, status.st_mtime_ns) for name, status in found]

    def provenance(self) -> dict[str, str]:
        """Return what exported it, if it says so, and the SHA-256 of every file, by what they are called in a lock."""
        maker = f"{self.bare.producer_name} {self.bare.producer_version}".strip()
        found = {"ONNX export made by": maker} if maker else {}
        files = (file for file in sorted(self.decoder.file.parent.iterdir()) if file.is_file())
        return found | {f"ONNX export's {file.name}": file_hash(file) for file in files}


def open_export(model: Model, *, progress: Progress = SILENT) -> Origin:
    """Export a model, unless it was before, and read what came of it.

    Args:
        model: A Hugging Face directory or GGUF.
        progress: Told what is done.

    Raises:
        MissingDependencyError: No environment with an exporter is named.
        EngineError: None manages, or what they make predicts otherwise than the model.
        UnsupportedModelError: The export has no float matrices.
    """
    decoder = read_decoder(exported(model, progress=progress))
    graph = read_onnx(decoder.file)
    weights = find_weights(graph, decoder.file)
    tensors = {}
    for tensor in graph.graph.initializer:
        tensors[tensor.name] = type(tensor)()
        tensors[tensor.name].CopyFrom(tensor)
    del graph.graph.initializer[:]
    return Origin(
        decoder=decoder, bare=graph, weights=weights, rows=Rows(tensors=tensors, path=decoder.file, model=model)
    )
