"""What engines make of texts and conversations: token ids and prompts, each by the engine's own tokenizer."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from kvant.errors import EngineError, KvantError, MissingDependencyError
from kvant.runtime import mlx
from kvant.runtime.process import EngineProcess
from kvant.runtime.sandbox import spawn
from kvant.runtime.template import render

GENAI_PYTHON = "KVANT_ONNX_PYTHON"
TIMEOUT_S = 600
_TAIL = 300

Conversation = Sequence[Mapping[str, str]]


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine makes of texts and conversations.

    Attributes:
        engine: Its name and version.
        ids: Token ids of every text, without special tokens around it; those named in it are parsed, as engines do.
        prompts: Prompt of every conversation; None where its template refuses it, or there is none.
    """

    engine: str
    ids: list[list[int]]
    prompts: list[str | None]


def by_llama(
    path: Path, template: str | None, names: Mapping[str, str], texts: Sequence[str],
    conversations: Sequence[Conversation],
) -> Spoken:  # fmt: skip
    """Ask llama.cpp; prompts are rendered as `kvant run` does.

    Args:
        path: A GGUF file.
        template: Its chat template.
        names: Texts of the tokens `bos` and `eos`.
        texts: What to tokenize.
        conversations: What to render.

    Raises:
        EngineError: The engine cannot load the file.
    """
    with EngineProcess() as engine:
        engine.open(path, n_ctx=16, n_threads=1, vocab_only=True)
        ids = [[int(i) for i in engine.tokenize(text, parse_special=True)] for text in texts]

    def rendered(messages: Conversation) -> str | None:
        if template is None:
            return None
        try:
            return render(template, messages, bos_token=names["bos"], eos_token=names["eos"])
        except KvantError:
            return None

    return Spoken(engine="llama.cpp", ids=ids, prompts=[rendered(messages) for messages in conversations])


def by_worker(
    engine: Literal["mlx", "genai"], path: Path, texts: Sequence[str], conversations: Sequence[Conversation]
) -> Spoken:
    """Ask mlx-lm or onnxruntime-genai, in the environment that `KVANT_MLX_PYTHON` or `KVANT_ONNX_PYTHON` names.

    Raises:
        MissingDependencyError: The engine is not installed there.
        EngineError: It cannot load the tokenizer.
    """
    variable = mlx.PYTHON if engine == "mlx" else GENAI_PYTHON
    python = os.environ.get(variable) or sys.executable
    request: dict[str, Any] = {
        "engine": engine, "path": str(path), "texts": list(texts),
        "conversations": [[dict(message) for message in messages] for messages in conversations],
    }  # fmt: skip
    worker = Path(__file__).with_name("tokenizer_worker.py")
    policy = spawn.foreign(path)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(  # noqa: S603
            spawn.command(policy, str(worker), python=python), input=json.dumps(request).encode(),
            capture_output=True, timeout=TIMEOUT_S, env=spawn.environment(**offline), start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise MissingDependencyError(f"{variable}: {python} cannot be run ({error}). Name a Python.") from error
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{path}: its tokenizer gave no answer within {TIMEOUT_S} s. Check the model.") from error
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        if "No module named" in said:
            raise MissingDependencyError(
                f"{path}: its tokenizer's engine is not installed ({said[:_TAIL]}). Set {variable} to the Python of an "
                f"environment that has it."
            )
        raise EngineError(f"{path}: its engine cannot load the tokenizer ({said[:_TAIL]}). Check the model.")
    return msgspec.json.decode(done.stdout, type=Spoken)
