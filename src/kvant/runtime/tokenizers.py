"""What engines make of texts and conversations: token ids and prompts, each by the engine's own tokenizer."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from kvant.documents import JSON_ERRORS
from kvant.errors import EngineError, MissingDependencyError, UnsupportedModelError
from kvant.runtime import mlx
from kvant.runtime.child import Child, ask_once
from kvant.runtime.process import EngineProcess
from kvant.runtime.sandbox import spawn
from kvant.runtime.template import render
from kvant.units import format_bytes

GENAI_PYTHON = "KVANT_ONNX_PYTHON"
TIMEOUT_S = 600.0
MAX_ANSWER_BYTES = 256 << 20
_TAIL = 300
AROUND = "x"

Conversation = Sequence[Mapping[str, str]]


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine makes of texts and conversations.

    Attributes:
        engine: Its name and version.
        ids: Token ids of every text, without special tokens around it; those named in it are parsed, as engines do.
        around: Token ids of `AROUND` with the special tokens that are put around a text.
        prompts: Prompt of every conversation; None where its template refuses it, or there is none.
        prompt_ids: Token ids of every prompt.
    """

    engine: str
    ids: list[list[int]]
    around: list[int]
    prompts: list[str | None]
    prompt_ids: list[list[int] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What tokenizers are asked.

    Attributes:
        texts: What to tokenize.
        conversations: What to render, for engines that do it themselves.
        prompts: Gives the conversations as `kvant run` renders them by the model's own template; None for each that
            the template refuses.
    """

    texts: Sequence[str]
    conversations: Sequence[Conversation]
    prompts: Callable[[], Sequence[str | None]]


def by_llama(path: Path, questions: Questions) -> Spoken:
    """Ask llama.cpp what it makes of texts and of prompts that `kvant run` rendered.

    Raises:
        EngineError: The engine cannot load the GGUF file.
    """
    prompts = list(questions.prompts())
    with EngineProcess() as engine:
        engine.open(path, n_ctx=16, n_threads=1, vocab_only=True)

        def tokenize(text: str, *, add_special: bool = False) -> list[int]:
            return [int(i) for i in engine.tokenize(text, add_special=add_special, parse_special=True)]

        return Spoken(
            engine="llama.cpp", ids=[tokenize(text) for text in questions.texts],
            around=tokenize(AROUND, add_special=True), prompts=prompts,
            prompt_ids=[None if prompt is None else tokenize(prompt) for prompt in prompts],
        )  # fmt: skip


def by_tokenizer_json(directory: Path, questions: Questions) -> Spoken:
    """Ask the `tokenizers` library, which transformers uses, for what a directory's tokenizer.json says.

    Raises:
        EngineError: The library cannot load the file.
    """
    texts, prompts = questions.texts, list(questions.prompts())
    given = [prompt for prompt in prompts if prompt is not None]
    found = by_worker("tokenizers", directory, [*texts, *given], ())
    ids = iter(found.ids[len(texts) :])
    return Spoken(
        engine=found.engine, ids=found.ids[: len(texts)], around=found.around, prompts=prompts,
        prompt_ids=[None if prompt is None else next(ids) for prompt in prompts],
    )  # fmt: skip


def rendered(template: str | None, names: Mapping[str, str], messages: Conversation) -> str | None:
    """Return the prompt of a conversation; None where its template refuses it, or there is none.

    Raises:
        LimitError: The template takes more time, memory or text than one can need.
    """
    if template is None:
        return None
    try:
        return render(template, messages, bos_token=names["bos"], eos_token=names["eos"])
    except UnsupportedModelError:
        return None


def by_worker(
    engine: Literal["mlx", "genai", "tokenizers"], path: Path, texts: Sequence[str],
    conversations: Sequence[Conversation],
) -> Spoken:  # fmt: skip
    """Ask mlx-lm or onnxruntime-genai, in the environment that `KVANT_MLX_PYTHON` or `KVANT_ONNX_PYTHON` names.

    The `tokenizers` library is asked in this environment.

    Raises:
        MissingDependencyError: The engine is not installed there.
        EngineError: It cannot load the tokenizer.
    """
    variable = {"mlx": mlx.PYTHON, "genai": GENAI_PYTHON}.get(engine, "PATH")
    python = sys.executable if engine == "tokenizers" else os.environ.get(variable) or sys.executable
    request: dict[str, Any] = {
        "engine": engine, "path": str(path), "texts": list(texts), "around": AROUND,
        "conversations": [[dict(message) for message in messages] for messages in conversations],
    }  # fmt: skip
    worker = Path(__file__).with_name("tokenizer_worker.py")
    try:
        child = Child(spawn.foreign(path), str(worker), python=python, environment=mlx.ENVIRONMENT)
    except OSError as error:
        raise MissingDependencyError(f"{variable}: {python} cannot be run ({error}). Name a Python.") from error
    try:
        done = ask_once(child, json.dumps(request).encode(), timeout_s=TIMEOUT_S, limit=MAX_ANSWER_BYTES)
    except TimeoutError as error:
        raise EngineError(f"{path}: its tokenizer gave no answer within {TIMEOUT_S:g} s. Check the model.") from error
    if done.answer is None:
        raise EngineError(f"{path}: its tokenizer answers over {format_bytes(MAX_ANSWER_BYTES)}. Check the model.")
    if done.status:
        said = (done.said or ["it said nothing"])[-1]
        if "No module named" in said:
            raise MissingDependencyError(
                f"{path}: its tokenizer's engine is not installed ({said[:_TAIL]}). Set {variable} to the Python of an "
                f"environment that has it."
            )
        raise EngineError(f"{path}: its engine cannot load the tokenizer ({said[:_TAIL]}). Check the model.")
    try:
        return msgspec.json.decode(done.answer, type=Spoken)
    except JSON_ERRORS as error:
        raise EngineError(f"{path}: its tokenizer answers what is no answer ({error}). Check the model.") from None
