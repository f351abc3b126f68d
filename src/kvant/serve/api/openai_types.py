"""OpenAI's messages. Unknown fields of a request are refused, as OpenAI does; those of its parts are ignored.

Source: OpenAI's API reference (chat completions, completions, embeddings); the fields after `# Extensions` are those
of llama.cpp's server and vLLM.
"""

from typing import Any, Literal

import msgspec

from kvant.serve.api.chunks import TokenLogprob


class Part(msgspec.Struct):
    """A part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CallFunction(msgspec.Struct):
    """A call of a function."""

    name: str
    arguments: str = "{}"


class Call(msgspec.Struct):
    """A call of a tool."""

    id: str
    function: CallFunction
    type: str = "function"


class Message(msgspec.Struct):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct, omit_defaults=True):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that a model may call."""

    function: Function
    type: Literal["function"] = "function"


class ChoiceFunction(msgspec.Struct):
    """A function by its name."""

    name: str


class ToolChoice(msgspec.Struct):
    """The one tool that must be called."""

    function: ChoiceFunction
    type: Literal["function"] = "function"


class JsonSchema(msgspec.Struct):
    """A JSON schema and its name."""

    schema: dict[str, Any] = msgspec.field(default_factory=dict)
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(msgspec.Struct):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TemplateArguments(msgspec.Struct, forbid_unknown_fields=True):
    """The values that a client may give to a template."""

    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Sampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    # Extensions
    grammar: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    keep_alive: int | float | str | None = None


class ChatRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: Effort | None = None
    modalities: list[str] | None = None
    # Understood, without effect here
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Extensions
    chat_template_kwargs: TemplateArguments | None = None


class CompletionRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class OutFunction(msgspec.Struct):
    """A call of a function, told."""

    name: str
    arguments: str


class OutCall(msgspec.Struct):
    """A call of a tool, told."""

    id: str
    function: OutFunction
    type: str = "function"


class OutMessage(msgspec.Struct, omit_defaults=True):
    """An answer."""

    content: str | None
    role: str = msgspec.field(default_factory=lambda: "assistant")
    refusal: None = msgspec.field(default_factory=lambda: None)
    reasoning_content: str | None = None
    tool_calls: list[OutCall] | None = None


class OutLogprobs(msgspec.Struct):
    """Probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class OutChoice(msgspec.Struct):
    """The one answer."""

    message: OutMessage
    finish_reason: str
    logprobs: OutLogprobs | None = None
    index: int = 0


class OutUsage(msgspec.Struct):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] = msgspec.field(default_factory=dict)


class ChatCompletion(msgspec.Struct):
    """The answer of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[OutChoice]
    usage: OutUsage
    object: str = "chat.completion"
    system_fingerprint: str = "kvant"


class ListedModel(msgspec.Struct):
    """A model of /v1/models."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "kvant"
