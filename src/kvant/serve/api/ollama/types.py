"""Ollama's messages. Unknown fields are ignored, as Ollama does.

Source: Ollama 0.32 api/types.go.
"""

from typing import Any, Literal

import msgspec

from kvant.generate.chunks import TokenLogprob
from kvant.serve.api.keepalive import KeepAlive

Think = bool | Literal["low", "medium", "high", "max"]


class FunctionCall(msgspec.Struct, omit_defaults=True):
    """A call of a function."""

    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    index: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty")


class ToolCall(msgspec.Struct, omit_defaults=True):
    """A call of a tool."""

    function: FunctionCall
    id: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """A message of a chat."""

    role: str
    content: str = ""
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(msgspec.Struct, omit_defaults=True):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A tool that a model may call."""

    function: ToolFunction
    type: str = "function"


class _Request(msgspec.Struct, kw_only=True):
    """What all that make text have in common."""

    model: str
    stream: bool | None = None
    format: Any = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None
    think: Think | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0


class GenerateRequest(_Request, kw_only=True):
    """POST /api/generate."""

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool = False
    images: list[str] | None = None


class ChatRequest(_Request, kw_only=True):
    """POST /api/chat."""

    messages: list[Message] = []
    tools: list[Tool] | None = None


class EmbedRequest(msgspec.Struct, kw_only=True):
    """POST /api/embed."""

    model: str
    input: str | list[str] = msgspec.field(default_factory=list)
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """POST /api/embeddings, the older form."""

    model: str
    prompt: str = ""
    truncate: bool | None = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None


class ShowRequest(msgspec.Struct, kw_only=True):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None
    verbose: bool = False
    system: str | None = None
    options: dict[str, Any] | None = None


class Measures(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Counts and durations (ns) of a whole answer."""

    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class GenerateResponse(Measures, omit_defaults=True, kw_only=True):
    """A line of /api/generate."""

    model: str
    created_at: str
    response: str | None = None
    thinking: str | None = None
    done: bool | None = None
    done_reason: str | None = None
    context: list[int] | None = None
    logprobs: list[TokenLogprob] | None = None


class ChatResponse(Measures, omit_defaults=True, kw_only=True):
    """A line of /api/chat."""

    model: str
    created_at: str
    message: dict[str, Any] | None = None
    done: bool | None = None
    done_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None


class EmbedResponse(msgspec.Struct):
    """The answer of /api/embed."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Details(msgspec.Struct):
    """What a model is, in a few words."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    context_length: int
    embedding_length: int


class ListedModel(msgspec.Struct):
    """A model of /api/tags."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str]


class RunningModel(msgspec.Struct):
    """A model of /api/ps."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class ShowResponse(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The answer of /api/show."""

    license: str = ""
    modelfile: str
    parameters: str = ""
    template: str
    system: str = ""
    details: Details
    messages: list[dict[str, str]] | None = None
    model_info: dict[str, Any]
    projector_info: dict[str, Any] | None = None
    tensors: list[dict[str, Any]] | None = None
    capabilities: list[str]
    modified_at: str


class Tags(msgspec.Struct):
    """The answer of /api/tags."""

    models: list[ListedModel]


class Running(msgspec.Struct):
    """The answer of /api/ps."""

    models: list[RunningModel]


class Version(msgspec.Struct):
    """The answer of /api/version."""

    version: str
    kvant: str
