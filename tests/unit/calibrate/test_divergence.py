"""Gradients of a student's divergence against differences of it, and against one graph through both models."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvant.calibrate.decoder import Decoder
from kvant.calibrate.divergence import Teacher, divergences, gradients, teach
from kvant.calibrate.student import Student
from kvant.formats.open import open_model
from kvant.model import Model
from kvant.quant.plan import Plan
from kvant.recipes.quantize import quantize
from tiny_models import N_VOCAB, write_tiny_model

TOKENS = np.random.default_rng(3).integers(3, N_VOCAB, (5, 16), dtype=np.int32)
TYPES = ("Q4_K", "Q3_K", "Q5_1", "IQ4_NL", "Q2_K", "Q6_K", "Q4_1")


def quantized(original: Model, path: Path) -> Model:
    """The model in many types at once."""
    matrices = [name for name, tensor in original.tensors.items() if len(tensor.shape) > 1]
    types = {name: TYPES[matrices.index(name) % len(TYPES)] if name in matrices else "F32" for name in original.tensors}
    quantize(original, Plan(preset="custom", file_type=0, types=types), path)
    return open_model(path)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Teacher]:
    home = tmp_path_factory.mktemp("pair")
    original = open_model(write_tiny_model(request.param, home / "tiny", num_hidden_layers=2))
    return Student(quantized(original, home / "q.gguf"), threads=1), teach(original, TOKENS, threads=1)


def test_divergences_are_those_of_whole_logits(pair: tuple[Student, Teacher]) -> None:
    student, teacher = pair
    with torch.no_grad():
        p = Decoder(teacher.decoder.model).logits(TOKENS).double().log_softmax(-1)
        q = Decoder(student.model).logits(TOKENS).double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).mean(-1)
    found = divergences(student, teacher, range(len(TOKENS)))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    assert found.min() > 1e-4


def test_gradients_are_what_differences_say(pair: tuple[Student, Teacher]) -> None:
    student, teacher = pair
    found, mean = gradients(student, teacher, [0, 2, 3])
    assert mean == pytest.approx(divergences(student, teacher, [0, 2, 3]).mean(), rel=1e-5)
    assert found.keys() == student.changes.keys()
    chance = np.random.default_rng(1)
    for key, gradient in found.items():
        way = np.sign(gradient) * chance.random(gradient.shape).astype(np.float32)
        way *= np.float32(0.01)
        sides = []
        for sign in (1, -1):
            student.changes[key] += sign * way
            sides.append(divergences(student, teacher, [0, 2, 3]).mean())
            student.changes[key] -= sign * way
        expected = float(np.sum(gradient * way, dtype=np.float64))
        assert (sides[0] - sides[1]) / 2 == pytest.approx(expected, rel=0.02, abs=2e-7), key
