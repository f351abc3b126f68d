"""Engine parameters that people may set, over HTTP, in a Modelfile or on the command line: one table.

Nothing else that a client sends reaches the engine. The names are those of Ollama and of Modelfiles; OpenAI's clients
and `kvant run` use them too, with `max_tokens` for `num_predict` (and `num_ctx` is `kvant run --context`).

Sources: llama.cpp tools/server/README.md (names of the engine), Ollama api/types.go (`Options`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvant.errors import ApiError

Kind = Literal["integer", "number", "boolean", "array"]
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        kind: JSON type.
        low: Least value.
        high: Largest value.
        engine: The engine's name; None for one that is understood and has no effect on a running engine.
    """

    kind: Kind
    low: float = float("-inf")
    high: float = float("inf")
    engine: str | None = None


_INT = 2**31 - 1
PARAMETERS: dict[str, Parameter] = {
    "num_predict": Parameter("integer", -_INT, _INT, "n_predict"),
    "temperature": Parameter("number", 0, 100, "temperature"),
    "top_k": Parameter("integer", -_INT, _INT, "top_k"),
    "top_p": Parameter("number", 0, 1, "top_p"),
    "min_p": Parameter("number", 0, 1, "min_p"),
    "typical_p": Parameter("number", 0, 1, "typical_p"),
    "seed": Parameter("integer", -(2**63), 2**63 - 1, "seed"),
    "stop": Parameter("array", engine="stop"),
    "repeat_last_n": Parameter("integer", -1, _INT, "repeat_last_n"),
    "repeat_penalty": Parameter("number", 0, 100, "repeat_penalty"),
    "presence_penalty": Parameter("number", -100, 100, "presence_penalty"),
    "frequency_penalty": Parameter("number", -100, 100, "frequency_penalty"),
    "mirostat": Parameter("integer", 0, 2, "mirostat"),
    "mirostat_tau": Parameter("number", 0, 1000, "mirostat_tau"),
    "mirostat_eta": Parameter("number", 0, 100, "mirostat_eta"),
    # Decided when a model is loaded; `num_ctx` is asked of the scheduler.
    "num_ctx": Parameter("integer", 0, 1 << 24),
    "num_keep": Parameter("integer", -1, _INT),
    "num_batch": Parameter("integer", 0, _INT),
    "num_gpu": Parameter("integer", -1, _INT),
    "main_gpu": Parameter("integer", 0, _INT),
    "use_mmap": Parameter("boolean"),
    "num_thread": Parameter("integer", 0, _INT),
    "draft_num_predict": Parameter("integer", 0, _INT),
}
OLLAMA_DEFAULTS: dict[str, Any] = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.0, "repeat_last_n": 64,
}  # fmt: skip
RUN_DEFAULTS: dict[str, Any] = {
    "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0,
}  # fmt: skip
"""Of `kvant run`."""

OPENAI_DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
_TYPES: dict[Kind, type | tuple[type, ...]] = {"integer": int, "number": (int, float), "boolean": bool, "array": list}


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are known, each of its type and in its range; others are left out, as Ollama does.

    Raises:
        ApiError: A value of another type, in Ollama's words, or out of range.
    """
    known = {}
    for name, value in options.items():
        rule = PARAMETERS.get(name)
        if rule is None or value is None:
            continue
        known[name] = _value(name, value, rule)
    return known


def unknown(options: Mapping[str, Any] | None) -> list[str]:
    """Return the options that are left out, for the header that tells them."""
    return [f"options.{name}" for name in options or {} if name not in PARAMETERS]


def _value(name: str, value: Any, rule: Parameter) -> Any:
    if rule.kind == "array" and isinstance(value, str):  # one stop word, as a Modelfile writes it
        value = [value]
    if rule.kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, _TYPES[rule.kind]) or (isinstance(value, bool) and rule.kind != "boolean"):
        raise ApiError(f'option "{name}" must be of type {rule.kind}', param=name)
    if isinstance(value, list):
        return _stops(name, value)
    assert isinstance(value, int | float)
    if not rule.low <= value <= rule.high:  # also refuses NaN
        raise ApiError(f"{name}: {value} is not from {rule.low:g} to {rule.high:g}. Choose another value.", param=name)
    return value


def _stops(name: str, words: list[Any]) -> list[str]:
    if not all(isinstance(word, str) for word in words):
        raise ApiError(f'option "{name}" must be of type array of strings', param=name)
    if len(words) > MAX_STOPS or any(len(word) > MAX_STOP_CHARACTERS for word in words):
        raise ApiError(
            f"{name}: {len(words)} words break the limit of {MAX_STOPS} words of {MAX_STOP_CHARACTERS} characters. "
            "Give fewer.",
            param=name,
        )
    return [word for word in words if word]


def engine_options(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the engine is sent: the layers one over the other, under the engine's names.

    Args:
        layers: Defaults first, a model's own settings, the request last; values are checked.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= checked(layer)
    sent = {}
    for name, value in merged.items():
        engine = PARAMETERS[name].engine
        if engine is not None:
            sent[engine] = value
    if sent.get("n_predict", -1) <= 0:
        sent.pop("n_predict", None)  # until the model ends, or its context does
    if "seed" in sent:
        sent["seed"] = sent["seed"] % (1 << 32) if sent["seed"] >= 0 else (1 << 32) - 1
    return sent


def context_wanted(*layers: Mapping[str, Any]) -> int | None:
    """Return the context asked for, tokens; the last layer decides."""
    wanted = None
    for layer in layers:
        wanted = checked({"num_ctx": layer.get("num_ctx")}).get("num_ctx") or wanted
    return wanted
