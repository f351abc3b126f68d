"""A tied embedding that an exporter stored twice, stored once again."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from kvant.formats.onnx.reader import read_onnx
from kvant.formats.onnx.weights import HEAD, find_weights, read_embedding
from kvant.formats.onnx.writer import array_of, write_graph
from kvant.recipes.targets.onnx.rows import CHUNK_ROWS


def store_tied_once(file: Path) -> None:
    """Let a decoder's head read the embedding if both hold the same values.

    Args:
        file: A graph of float matrices; it and the weights beside it are replaced.
    """
    graph = read_onnx(file)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    weights = find_weights(graph, file)
    embedding = next((w for w in weights if w.lookup and not w.product), None)
    head = next((w for w in weights if w.names == (HEAD,)), None)
    if embedding is None or head is None or (embedding.rows, embedding.columns) != (head.rows, head.columns):
        return
    arrays = [array_of(tensors[weight.name], file) for weight in (embedding, head)]
    ours, theirs = (a.T if w.is_transposed else a for w, a in zip((embedding, head), arrays, strict=True))
    chunks = (slice(at, at + CHUNK_ROWS) for at in range(0, embedding.rows, CHUNK_ROWS))
    if not all(np.array_equal(ours[chunk], theirs[chunk]) for chunk in chunks):
        return
    read_embedding(graph, head, embedding)
    kept = {name: partial(array_of, tensor, file) for name, tensor in tensors.items() if name != head.name}
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        for written in write_graph(graph, kept, Path(folder) / file.name):
            written.replace(file.parent / written.name)
