"""Fitted files in an engine of a year ago: the same next tokens as in the pinned one, every type that it knows.

The old wheel (llama.cpp b7079, November 2025) is installed into an environment of its own, hence slow.
"""

import dataclasses
import json
import subprocess
import sys
import venv
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from kvant.dtypes import F32, NEW_TYPES
from kvant.formats.open import open_model
from kvant.kernels import decode
from kvant.kernels.fitting import FITTABLE
from kvant.model import Model
from kvant.quant.plan import Plan
from kvant.recipes.convert.convert import convert
from kvant.recipes.measure.calibration import calibrate
from kvant.recipes.targets.gguf.write import quantize
from kvant.runtime.process import EngineProcess
from kvant.tensors import array_tensor
from kvant.testing.tiny_models import N_VOCAB, write_tiny_model

OLD = "xllamacpp==0.2.5"
KINDS = sorted(FITTABLE - NEW_TYPES)
TOLERANCE = 0.05
"""Of log-probabilities: the two engines round activations in kernels of their own."""
PROMPT = "The sea is wide and"

ASK = """
import json, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.cpuparams.n_threads, params.warmup = sys.argv[1], 256, 1, False
answer = xllamacpp.Server(params).handle_completions(
    {"prompt": sys.argv[2], "max_tokens": 1, "temperature": 0, "n_probs": 20}
)
answer = json.loads(answer) if isinstance(answer, str) else answer
tops = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
print("TOPS " + json.dumps({str(top["id"]): top["logprob"] for top in tops}))
"""


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("old")
    venv.create(home, with_pip=True)
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", OLD], check=True)
    return python


def speaking_text(model: Model, file: Path) -> Model:
    """A model that never likes half a character best: the old server cannot put one into its JSON."""
    convert(model.path, file, to="gguf")
    with EngineProcess() as engine:
        engine.open(file, n_ctx=16, n_threads=1, vocab_only=True)
        pieces = engine.pieces(range(N_VOCAB))
    head = model.tensors["output.weight"]
    rows = decode(head.read_bytes(0, N_VOCAB), head.block_type, head.shape[-1])
    rows[["\ufffd" in piece.decode("utf-8", "replace") for piece in pieces]] = 0
    return dataclasses.replace(model, tensors={**model.tensors, head.name: array_tensor(head.name, rows, F32)})


@pytest.mark.slow
def test_it_predicts_what_the_pinned_engine_predicts(old_python: Path, tmp_path: Path) -> None:
    model = speaking_text(open_model(write_tiny_model("llama3", tmp_path / "tiny")), tmp_path / "vocabulary.gguf")
    curvatures = calibrate(model, "bundled", windows=3).curvatures
    kinds = cycle(KINDS)
    types = {name: next(kinds) if name in curvatures.names else "F32" for name in model.tensors}
    assert set(KINDS) <= set(types.values())
    file = tmp_path / "fitted.gguf"
    quantize(model, Plan(preset="custom", file_type=0, types=types, has_importance=True), file, curvatures=curvatures)

    done = subprocess.run([old_python, "-c", ASK, str(file), PROMPT], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TOPS ")]
    theirs = {int(token): value for token, value in json.loads(line.removeprefix("TOPS ")).items()}
    with EngineProcess() as engine:
        engine.open(file, n_ctx=256, n_threads=1, all_logits=True)
        assert engine.opened is not None
        tokens = np.array([[engine.opened.bos, *engine.tokenize(PROMPT)]], np.int32)
        (logits,) = engine.logits(tokens, first=tokens.shape[1] - 1)
    ours = logits[-1] - np.logaddexp.reduce(logits[-1])
    assert len(theirs) >= 10
    for token, value in theirs.items():
        assert abs(float(ours[token]) - value) < TOLERANCE
