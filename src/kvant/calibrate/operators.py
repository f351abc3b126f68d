"""Differentiable operations of a decoder whose bytes are the same on every machine and number of threads.

torch keeps the graph and does single additions, multiplications and copies, which IEEE 754 rounds the same everywhere.
What it would do in an order or with polynomials that depend on the processor is done by kvant's kernels here: products,
sums and exponentials, forward and backward. Second derivatives are not defined.
"""

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from kvant.kernels import linalg, rowwise


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, threads: int = 0
) -> torch.Tensor:
    """Return x Wᵀ + bias, float32 [..., rows], of x, float32 [..., n], and W, float32 [rows, n]."""
    y: torch.Tensor = _Linear.apply(x.flatten(0, -2), weight, bias, threads)  # type: ignore[no-untyped-call]
    return y.reshape(*x.shape[:-1], len(weight))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, *, threads: int = 0) -> torch.Tensor:
    """Return x / rms(x) * weight over the last axis, float32 like x, [..., n]; weight is float32 [n]."""
    y: torch.Tensor = _RmsNorm.apply(x, weight, epsilon, threads)  # type: ignore[no-untyped-call]
    return y


def gated(gate: torch.Tensor, up: torch.Tensor, *, threads: int = 0) -> torch.Tensor:
    """Return gate * sigmoid(gate) * up, float32 like both."""
    y: torch.Tensor = _Gated.apply(gate, up, threads)  # type: ignore[no-untyped-call]
    return y


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, threads: int = 0) -> torch.Tensor:
    """Return causal attention: softmax(q kᵀ / sqrt(head_dim)) v, each token seeing itself and those before it.

    Args:
        q: Queries, float32 [windows, heads, tokens, head_dim].
        k: Keys, float32 [windows, key heads, tokens, head_dim]; head h uses key head h // (heads / key heads).
        v: Values, like keys.
        threads: Threads; 0 for one per core.

    Returns:
        Float32 like q.
    """
    stacked = q.reshape(k.shape[0] * k.shape[1], -1, q.shape[-1])
    y: torch.Tensor = _Attention.apply(stacked, k.flatten(0, 1), v.flatten(0, 1), threads)  # type: ignore[no-untyped-call]
    return y.reshape(q.shape)


def squares(x: torch.Tensor, *, threads: int = 0) -> torch.Tensor:
    """Return the sum of squares of each row, float32 [rows], of x, float32 [rows, n]; not differentiable."""
    rows = _array(x)
    return torch.from_numpy(rowwise.row_dot(rows, rows, threads=threads).astype(np.float32))


def _array(x: torch.Tensor) -> np.ndarray:
    """A tensor's values, contiguous; its own memory if it is."""
    return x.detach().contiguous().numpy()


def _tensor(x: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x).reshape(like.shape)


def _column_sums(g: np.ndarray, threads: int) -> np.ndarray:
    """Sum over rows, float32 [rows, n] -> [n]: a product with ones."""
    return linalg.matmul(np.ones((1, len(g)), np.float32), g, threads=threads).reshape(-1)


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b over rows of x, float32 [tokens, n]; dx = g W, dW = gᵀ x, db = Σ g."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, threads: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.threads = threads
        y = torch.from_numpy(linalg.matmul_nt(_array(x), _array(weight), threads=threads))
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = _array(g)
        found: list[np.ndarray | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            found[0] = linalg.matmul(rows, _array(weight), threads=ctx.threads)
        if ctx.needs_input_grad[1]:
            found[1] = linalg.matmul_tn(rows, _array(x), threads=ctx.threads)
        if ctx.needs_input_grad[2]:
            found[2] = _column_sums(rows, ctx.threads)
        return (*(None if x is None else torch.from_numpy(x) for x in found), None)


class _RmsNorm(torch.autograd.Function):
    """y = x s w with s = 1 / sqrt(mean(x²) + epsilon); dx = s (g w - x s² mean(g w x)), dw = Σ g x s."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, threads: int) -> torch.Tensor:
        rows = _array(x).reshape(-1, x.shape[-1])
        mean = rowwise.row_dot(rows, rows, threads=threads) / rows.shape[1]
        scale = torch.from_numpy((1 / np.sqrt(mean + epsilon)).astype(np.float32)).reshape(*x.shape[:-1], 1)
        ctx.save_for_backward(x, weight, scale)
        ctx.threads = threads
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        n, dx, dw = x.shape[-1], None, None
        if ctx.needs_input_grad[0]:
            dx = g * weight
            along = rowwise.row_dot(_array(dx).reshape(-1, n), _array(x).reshape(-1, n), threads=ctx.threads) / n
            share = torch.from_numpy(along.astype(np.float32)).reshape(scale.shape) * scale * scale
            dx.sub_(x * share).mul_(scale)
        if ctx.needs_input_grad[1]:
            dw = torch.from_numpy(_column_sums(_array(g * x * scale).reshape(-1, n), ctx.threads))
        return dx, dw, None, None


class _Gated(torch.autograd.Function):
    """y = a u s with s = sigmoid(a); du = g a s, da = g u (s + a s (1 - s))."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, threads: int) -> torch.Tensor:
        rows = _array(gate).reshape(-1, gate.shape[-1])
        share = _tensor(rowwise.sigmoid(rows, threads=threads), gate)
        ctx.save_for_backward(gate, up, share)
        return (gate * share).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate, up, share = ctx.saved_tensors
        silu = gate * share
        du = g * silu
        slope = silu.mul_(1 - share).add_(share)
        return slope.mul_(g).mul_(up), du, None


class _Attention(torch.autograd.Function):
    """Stacks of heads: q, float32 [stacks, heads * tokens, head_dim], k and v, float32 [stacks, tokens, head_dim].

    Heads that share keys are rows of one product, so that gradients of keys and values are summed inside products.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, threads: int) -> torch.Tensor:
        tokens = k.shape[1]
        scaled = q * q.shape[-1] ** -0.5
        p = linalg.matmul_nt(_array(scaled), _array(k), threads=threads)
        rowwise.softmax(p.reshape(-1, tokens), period=tokens, threads=threads)
        ctx.save_for_backward(scaled, k, v, torch.from_numpy(p))
        ctx.threads = threads
        return torch.from_numpy(linalg.matmul(p, _array(v), threads=threads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        scaled, k, v, p = ctx.saved_tensors
        threads, rows = ctx.threads, _array(g)
        dv = linalg.matmul_tn(_array(p), rows, threads=threads)
        ds = torch.from_numpy(linalg.matmul_nt(rows, _array(v), threads=threads))
        flat, tokens = _array(p).reshape(-1, k.shape[1]), k.shape[1]
        along = rowwise.row_dot(_array(ds).reshape(-1, tokens), flat, threads=threads).astype(np.float32)
        ds.sub_(torch.from_numpy(along).reshape(*ds.shape[:2], 1)).mul_(p)
        dq = torch.from_numpy(linalg.matmul(_array(ds), _array(k), threads=threads)).mul_(scaled.shape[-1] ** -0.5)
        dk = linalg.matmul_tn(_array(ds), _array(scaled), threads=threads)
        return dq, torch.from_numpy(dk), torch.from_numpy(dv), None
