"""A differentiable float32 forward pass, layer by layer, from kvant's own tensors; any stored type is decoded.

It exists for statistics that need gradients or the inputs of every matrix; llama.cpp measures quality. Its bytes are
the same on every machine: operators.py.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from kvant.calibrate import operators
from kvant.calibrate.rotary import NEIGHBOURS, cos_sin, rotary_rates, rotate
from kvant.errors import UnsupportedFormatError, ValueRangeError
from kvant.kernels import decode
from kvant.model import Model
from kvant.tensors import Tensor, n_rows, row_length

ARCHITECTURES = ("llama", "qwen2", "qwen3")

GROUPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""Linears of a layer that share an input, in the order they run."""

LINEARS = tuple(name for group in GROUPS for name in group)
_REQUIRED = frozenset((*LINEARS, "attn_norm", "ffn_norm"))
_OPTIONAL = frozenset({"attn_q_norm", "attn_k_norm"})
EMBEDDING = "token_embd.weight"
_GLOBAL = frozenset({EMBEDDING, "output_norm.weight", "output.weight", "rope_freqs.weight"})

Observe = Callable[[tuple[str, ...], torch.Tensor], None]
"""`observe(names, x)`: x, float32 [windows, tokens, n], is about to be multiplied with each tensor of `names`."""

OnOutput = Callable[[str, torch.Tensor], None]
"""`on_output(name, y)`: y, float32 [windows, tokens, rows], is what the linear gave, bias included."""


def ignore(_: object, __: torch.Tensor) -> None:
    """Observe nothing."""


class Decoder:
    """A model of a known architecture, run one layer at a time so that one layer's weights are in memory.

    Args:
        model: Llama, Qwen2 or Qwen3 (dense) under canonical names, any block types.
        threads: Threads of the kernels; 0 for one per core. Their number does not change a bit.

    Attributes:
        n_layers: Layers.
        width: Length of the hidden state.
        head_name: Tensor that gives logits: `output.weight`, or the token embedding where they are tied.

    Raises:
        UnsupportedFormatError: Another architecture, rotary scaling or set of tensors.
    """

    def __init__(self, model: Model, *, threads: int = 0) -> None:
        _check(model)
        self.model, self.threads = model, threads
        self.n_layers, self.width = model.hyper("block_count"), model.hyper("embedding_length")
        self.n_heads = model.hyper("attention.head_count")
        self.n_kv_heads = model.hyper("attention.head_count_kv", self.n_heads)
        self.head_dim = model.hyper("attention.key_length", self.width // self.n_heads)
        self.head_name = "output.weight" if "output.weight" in model.tensors else EMBEDDING
        self._eps = float(str(model.get(f"{model.architecture}.attention.layer_norm_rms_epsilon", 1e-5)))
        self._rates = rotary_rates(model, self.head_dim)
        self._turns: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def names(self, layer: int) -> tuple[str, ...]:
        """Return the linears of a layer in the order they run; those of layer `n_layers` are the head's."""
        if layer == self.n_layers:
            return (self.head_name,)
        return tuple(f"blk.{layer}.{name}.weight" for name in LINEARS)

    def weights(self, layer: int) -> dict[str, torch.Tensor]:
        """Decode the tensors of a layer, or for layer `n_layers` of the head; float32, the caller's to free."""
        if layer == self.n_layers:
            wanted = ["output_norm.weight", self.head_name]
        else:
            wanted = [name for name in self.model.tensors if name.startswith(f"blk.{layer}.")]
        return {name: _decoded(self.model.tensors[name]) for name in wanted}

    def embed(self, tokens: np.ndarray) -> torch.Tensor:
        """Return the first hidden state of tokens, int32 [windows, tokens], as float32 [windows, tokens, width].

        Raises:
            ValueRangeError: A token is not in the vocabulary.
        """
        table = self.model.tensors[EMBEDDING]
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < n_rows(table):
            raise ValueRangeError(
                f"tokens: {tokens.min()} to {tokens.max()} leave the vocabulary of {n_rows(table)}. "
                "Tokenize the text with this model."
            )
        used, places = np.unique(tokens, return_inverse=True)
        rows = decode(table.read_bytes(0, n_rows(table))[used], table.block_type, self.width)
        return torch.from_numpy(rows[places.reshape(tokens.shape)])

    def steps(
        self, layer: int, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor], observe: Observe = ignore,
        on_output: OnOutput = ignore,
    ) -> torch.Tensor:  # fmt: skip
        """Run one layer.

        Args:
            layer: Its number.
            hidden: Its input, float32 [windows, tokens, width]; tokens start at position 0.
            weights: Its tensors; those of a group of linears are read only after `observe` saw the group's input, so
                an observer may replace them.
            observe: Told the input of each group before it runs.
            on_output: Told the output of each linear.

        Returns:
            Its output, float32 [windows, tokens, width].
        """

        def linear(group: int, x: torch.Tensor) -> list[torch.Tensor]:
            names = tuple(f"blk.{layer}.{name}" for name in GROUPS[group])
            observe(tuple(f"{name}.weight" for name in names), x)
            found = [self.linear(x, weights[f"{n}.weight"], weights.get(f"{n}.bias")) for n in names]
            for name, y in zip(names, found, strict=True):
                on_output(f"{name}.weight", y)
            return found

        normed = self._norm(hidden, weights[f"blk.{layer}.attn_norm.weight"])
        q, k, v = (_heads(y, self.head_dim) for y in linear(0, normed))
        q, k = (
            self._rotate(self._norm(y, weights[name]) if name in weights else y)
            for y, name in ((q, f"blk.{layer}.attn_q_norm.weight"), (k, f"blk.{layer}.attn_k_norm.weight"))
        )
        mixed = operators.attention(q, k, v, threads=self.threads)
        hidden = hidden + linear(1, mixed.transpose(1, 2).flatten(2))[0]
        gate, up = linear(2, self._norm(hidden, weights[f"blk.{layer}.ffn_norm.weight"]))
        return hidden + linear(3, operators.gated(gate, up, threads=self.threads))[0]

    def final_norm(self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what the head is multiplied with, float32 like `hidden`; weights are those of layer `n_layers`."""
        return self._norm(hidden, weights["output_norm.weight"])

    def head(self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return logits, float32 [..., n_vocab], of hidden states after the last layer, float32 [..., width]."""
        weights = self.weights(self.n_layers) if weights is None else weights
        return self.linear(self.final_norm(hidden, weights), weights[self.head_name])

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x Wᵀ + bias, float32 [..., rows], of x, float32 [..., n], and W, float32 [rows, n]."""
        return operators.linear(x, weight, bias, threads=self.threads)

    def logits(self, tokens: np.ndarray) -> torch.Tensor:
        """Return logits of whole windows, float32 [windows, tokens, n_vocab], of tokens, int32 [windows, tokens]."""
        hidden = self.embed(tokens)
        for layer in range(self.n_layers):
            hidden = self.steps(layer, hidden, self.weights(layer))
        return self.head(hidden)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return x / rms(x) * weight, over the last axis."""
        return operators.rms_norm(x, weight, self._eps, threads=self.threads)

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Turn each pair of channels of x, float32 [windows, heads, tokens, head_dim], by position times its rate."""
        tokens = x.shape[2]
        if tokens not in self._turns:
            cos, sin = cos_sin(np.arange(tokens, dtype=np.float64)[:, None] * self._rates)
            self._turns = {tokens: (torch.from_numpy(cos), torch.from_numpy(sin))}
        return rotate(x, *self._turns[tokens], neighbours=self.model.architecture in NEIGHBOURS)


def _heads(y: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[windows, tokens, heads * head_dim] as [windows, heads, tokens, head_dim]."""
    return y.reshape(*y.shape[:-1], -1, head_dim).transpose(1, 2)


def _decoded(tensor: Tensor) -> torch.Tensor:
    raw = tensor.read_bytes(0, n_rows(tensor))
    return torch.from_numpy(decode(raw, tensor.block_type, row_length(tensor)).reshape(tensor.shape))


def _check(model: Model) -> None:
    """Refuse what `Decoder` would compute wrongly."""
    name = model.architecture
    if name not in ARCHITECTURES:
        raise UnsupportedFormatError(
            f"{model.path}: architecture {name} cannot be run for calibration. It can be for: "
            f"{', '.join(ARCHITECTURES)}. Quantize without statistics, or with an imatrix file."
        )
    scaling = model.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UnsupportedFormatError(
            f"{model.path}: rotary scaling {scaling} cannot be run for calibration, only linear. "
            "Quantize without statistics."
        )
    stems = frozenset((*_REQUIRED, *_OPTIONAL))
    layers = range(model.hyper("block_count"))
    wanted = {f"blk.{layer}.{stem}.weight" for layer in layers for stem in _REQUIRED}
    wanted |= {EMBEDDING, "output_norm.weight"}
    known = {f"blk.{n}.{stem}.{kind}" for n in layers for stem in stems for kind in ("weight", "bias")} | _GLOBAL
    odd = sorted(wanted - model.tensors.keys()) + sorted(model.tensors.keys() - known)
    if odd:
        raise UnsupportedFormatError(
            f"{model.path}: tensor {odd[0]} is {'missing' if odd[0] in wanted else 'not known'} in a dense {name} "
            "model. Quantize without statistics."
        )
