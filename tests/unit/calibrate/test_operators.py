from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from kvant.calibrate import operators
from kvant.kernels import isa

generator = torch.Generator().manual_seed(3)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def torch_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


CASES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "linear": (operators.linear, functional.linear, (normal(2, 9, 20), normal(13, 20))),
    "linear with bias": (operators.linear, functional.linear, (normal(2, 9, 20), normal(13, 20), normal(13))),
    "rms_norm": (lambda x, w: operators.rms_norm(x, w, 1e-5), torch_norm, (normal(2, 3, 5, 24), normal(24))),
    "gated": (operators.gated, lambda a, u: functional.silu(a) * u, (3 * normal(2, 9, 17), normal(2, 9, 17))),
    "attention": (
        operators.attention,
        torch_attention,
        (normal(2, 6, 11, 8), normal(2, 3, 11, 8), normal(2, 3, 11, 8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_all_gradients_are_torchs(name: str) -> None:
    ours, theirs, inputs = CASES[name]
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    y, expected = ours(*inputs), theirs(*(x.double() for x in inputs))
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(y, inputs, g)
    wanted = torch.autograd.grad(expected, inputs, g.double())
    for ours_, theirs_ in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone_is_the_same(name: str, wanted: int) -> None:
    ours, _, inputs = CASES[name]
    every = tuple(x.clone().requires_grad_() for x in inputs)
    one = tuple(x.clone().requires_grad_(i == wanted) for i, x in enumerate(inputs))
    y = ours(*every)
    g = torch.ones_like(y)
    expected = torch.autograd.grad(y, every, g)[wanted]
    assert torch.equal(torch.autograd.grad(ours(*one), one[wanted], g)[0], expected)


@pytest.mark.parametrize("name", CASES)
def test_bytes_depend_neither_on_the_level_nor_on_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _, inputs = CASES[name]
    seen = set()
    for level in isa.levels():
        monkeypatch.setenv(isa.ENVIRONMENT, level)
        for threads in (1, 3):
            taken = tuple(x.clone().requires_grad_() for x in inputs)
            call = {} if name == "rms_norm" else {"threads": threads}
            y = ours(*taken, **call)
            found = torch.autograd.grad(y, taken, torch.ones_like(y))
            seen.add(b"".join(x.detach().contiguous().numpy().tobytes() for x in (y, *found)))
    assert len(seen) == 1


def test_squares_of_rows() -> None:
    x = normal(7, 33)
    torch.testing.assert_close(operators.squares(x), x.double().square().sum(1).float())
