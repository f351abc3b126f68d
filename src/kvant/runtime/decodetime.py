"""Measure what a weight of each block type costs when a token is generated: seconds in the real engine, here and now.

Per type a synthetic Llama of random weights, all matrices of that type and together larger than most caches, makes
single tokens; what it takes beside the products is measured on the same model with next to no weights, and subtracted:

    seconds per weight = (fastest token - fastest token of the bare model) / weights

A token is short, so the fastest of many is one that nothing else on the machine disturbed; types take turns. The output
head costs what the same weights cost inside the layers (on one core within 5 %), so one figure per type says all.
"""

import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from kvant import kernels
from kvant.dtypes import F32, BlockType, block_type
from kvant.files import cache_dir
from kvant.formats.gguf.writer import write_gguf
from kvant.metadata import f32, string, u32
from kvant.progress import SILENT, Progress
from kvant.runtime.process import EngineProcess
from kvant.tensors import LazyTensor, array_tensor, n_weights

CONTEXT = 64
STEPS = 16
BARE_TYPE = "Q8_0"
TILE_ROWS = 8
TASK = "time block types"


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """Size of the synthetic models and time spent on them.

    Attributes:
        hidden: Weights per row; a multiple of 256, so that every block type divides it.
        feed_forward: Width of the feed-forward part; likewise.
        layers: Layers. The defaults make 82 million weights, 46 MB as Q4_0.
        rounds: Turns that each type gets.
        round_s: Seconds of a turn, loading not counted.
    """

    hidden: int = 1024
    feed_forward: int = 3072
    layers: int = 6
    rounds: int = 2
    round_s: float = 0.3


DEFAULT_EFFORT = Effort()


def measure_weight_seconds(
    kinds: Iterable[str], *, threads: int, effort: Effort | None = None, progress: Progress = SILENT
) -> dict[str, float]:
    """Time block types.

    Args:
        kinds: Names of block types that the engine multiplies by.
        threads: Threads of the engine.
        effort: How large and how long; by default about a second per type.
        progress: Told of turns.

    Returns:
        Seconds per weight and generated token, by block type.

    Raises:
        EngineError: The engine fails on a type.
        KvantError: The disk is full.
    """
    effort = effort or DEFAULT_EFFORT
    names = list(dict.fromkeys(block_type(kind).name for kind in kinds))
    fastest: dict[str, float] = {}
    weights: dict[str, int] = {}
    with (
        tempfile.TemporaryDirectory(dir=cache_dir("decode")) as directory,
        EngineProcess(reads=(Path(directory),)) as engine,
    ):
        bare = Path(directory) / "bare.gguf"
        progress.start(TASK, effort.rounds * (len(names) + 1), "types")
        for turn in range(effort.rounds):
            for name in ("bare", *names):
                path = bare.with_stem(name)
                if turn == 0:
                    weights[name] = _write(path, name, effort) if name != "bare" else _write_bare(path, effort)
                took = _fastest_token(engine, path, threads, effort.round_s)
                fastest[name] = min(took, fastest.get(name, took))
                progress.advance(TASK, 1)
        progress.finish(TASK)
    return weight_seconds(fastest, weights)


def weight_seconds(fastest: dict[str, float], weights: dict[str, int]) -> dict[str, float]:
    """Solve for seconds per weight from the tokens' times; `bare` holds few weights of `BARE_TYPE`.

    The bare model's own weights are charged at what `BARE_TYPE` costs, or the mean of the types if it was not timed.
    """
    bare_s, few = fastest["bare"], weights["bare"]
    kinds = [name for name in fastest if name != "bare"]
    like = [BARE_TYPE] if BARE_TYPE in kinds else kinds
    charge = sum((fastest[name] - bare_s) / (weights[name] - few) for name in like) / max(1, len(like))
    constant = bare_s - charge * few
    return {name: max(0.0, (fastest[name] - constant) / weights[name]) for name in kinds}


def _fastest_token(engine: EngineProcess, path: Path, threads: int, seconds: float) -> float:
    """Seconds of the fastest of the tokens that can be made in some time, `STEPS` at least."""
    engine.open(path, n_ctx=CONTEXT, n_threads=threads)
    fastest, start = math.inf, time.perf_counter()
    while fastest == math.inf or time.perf_counter() - start < seconds:
        fastest = min(fastest, engine.speed(n_prompt=1, n_generate=STEPS, repeats=1).fastest_s)
    return fastest


def _write(path: Path, kind: str, effort: Effort) -> int:
    return _write_model(path, block_type(kind), effort.hidden, effort.feed_forward, effort.hidden, effort.layers)


def _write_bare(path: Path, effort: Effort) -> int:
    """The same model with narrow matrices: as many operations and threads that wait for each other, few weights."""
    return _write_model(path, block_type(BARE_TYPE), effort.hidden, 32, 64, effort.layers)


def _write_model(path: Path, kind: BlockType, hidden: int, feed_forward: int, attention: int, layers: int) -> int:
    """Write a Llama without a tokenizer; return the weights of its layers."""
    head = min(attention, 128)
    metadata = {
        "general.architecture": string("llama"), "tokenizer.ggml.model": string("none"),
        "llama.vocab_size": u32(256), "llama.context_length": u32(CONTEXT), "llama.block_count": u32(layers),
        "llama.embedding_length": u32(hidden), "llama.feed_forward_length": u32(feed_forward),
        "llama.attention.head_count": u32(attention // head), "llama.attention.key_length": u32(head),
        "llama.attention.value_length": u32(head), "llama.rope.dimension_count": u32(head),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    }  # fmt: skip
    shapes = {
        "attn_q": (attention, hidden), "attn_k": (attention, hidden), "attn_v": (attention, hidden),
        "attn_output": (hidden, attention), "ffn_gate": (feed_forward, hidden), "ffn_up": (feed_forward, hidden),
        "ffn_down": (hidden, feed_forward),
    }  # fmt: skip
    tiles = {n: _tile(kind, n) for n in {shape[1] for shape in shapes.values()}}
    plain = {n: _tile(F32, n) for n in (hidden,)}
    tensors = [_matrix("token_embd.weight", (256, hidden), F32, plain), _ones("output_norm.weight", hidden)]
    products = []
    for layer in range(layers):
        products += [_matrix(f"blk.{layer}.{part}.weight", shape, kind, tiles) for part, shape in shapes.items()]
        tensors += [_ones(f"blk.{layer}.{norm}.weight", hidden) for norm in ("attn_norm", "ffn_norm")]
    write_gguf(path, metadata, [*tensors, *products])
    return sum(n_weights(tensor) for tensor in products)


def _tile(kind: BlockType, n: int) -> np.ndarray:
    """Some rows of random weights, uint8 [rows, row bytes]; a model's rows repeat them."""
    x = np.random.default_rng(n).normal(0, 0.02, (TILE_ROWS, n)).astype(np.float32)
    return kernels.encode(x, kind, importance=np.ones(n, np.float32))


def _matrix(name: str, shape: tuple[int, int], kind: BlockType, tiles: dict[int, np.ndarray]) -> LazyTensor:
    tile = tiles[shape[1]]
    return LazyTensor(
        name=name, shape=shape, block_type=kind, read=lambda start, stop: tile[np.arange(start, stop) % len(tile)]
    )


def _ones(name: str, n: int) -> LazyTensor:
    return array_tensor(name, np.ones(n, np.float32), F32)
