"""OpenAI's messages. What is not known is left out and named; what asks for something that is not made here is refused.

Source: OpenAI's API reference (chat completions, completions, embeddings); the fields after `# Extensions` are those
of llama.cpp's server, vLLM, OpenRouter and Ollama, which their clients send to any server.
"""

from typing import Any, ClassVar, Literal

import msgspec

from kvant.generate.chunks import TokenLogprob, Usage

DONE = b"data: [DONE]\n\n"
"""What ends a stream."""


class ImageUrl(msgspec.Struct):
    """A picture; how much of its detail is looked at is the model's own."""

    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    """A sound, base64."""

    data: str
    format: str | None = None


class Part(msgspec.Struct):
    """A part of a message; which fields it needs is told by its type."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageUrl | None = None
    input_audio: InputAudio | None = None
    file_id: str | None = None


class CallFunction(msgspec.Struct):
    """A call of a function; its arguments are JSON as text, or an object as some clients write it."""

    name: str
    arguments: str | dict[str, Any] | None = None


class Call(msgspec.Struct):
    """A call of a tool."""

    function: CallFunction
    id: str | None = None
    type: str | None = None


class Message(msgspec.Struct):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    function_call: CallFunction | None = None


class Function(msgspec.Struct, omit_defaults=True):
    """A function that a model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool that a model may call; only functions can be offered."""

    function: Function | None = None
    type: str = "function"


class ChoiceFunction(msgspec.Struct):
    """A function by its name."""

    name: str


class ToolChoice(msgspec.Struct):
    """The one tool that must be called, or those that may be, or what a word would say."""

    type: str = "function"
    function: ChoiceFunction | None = None
    name: str | None = None
    allowed_tools: dict[str, Any] | None = None


class JsonSchema(msgspec.Struct):
    """A JSON schema and its name."""

    schema: dict[str, Any] = msgspec.field(default_factory=dict)
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema", "grammar"]
    json_schema: JsonSchema | None = None
    # Extensions
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    grammar: str | None = None


class StreamOptions(msgspec.Struct):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Reasoning(msgspec.Struct):
    """How much a model thinks, as OpenRouter's clients say it."""

    effort: str | None = None
    enabled: bool | None = None


_FORMAT = "is not known here. Use response_format or grammar."
_ONCE = "only one answer is made at once. Send more requests."


class Sampling(msgspec.Struct, kw_only=True):
    """What chat completions and completions have in common."""

    refused: ClassVar[dict[str, str]] = {
        "best_of": _ONCE, "use_beam_search": "is not done here. Leave it out.",
        "guided_json": _FORMAT, "guided_regex": _FORMAT, "guided_choice": _FORMAT, "guided_grammar": _FORMAT,
        "structured_outputs": _FORMAT, "json_schema": _FORMAT, "regex": _FORMAT, "ebnf": _FORMAT,
        "prompt_logprobs": "are not told here. Leave it out.", "audio": "is not made here. Leave it out.",
    }  # fmt: skip

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
    # Understood, without effect here
    user: Any = None
    # Extensions
    grammar: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    keep_alive: int | float | str | None = None
    n_predict: int | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None
    return_progress: bool | None = None


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None
    functions: list[Function] | None = None
    function_call: str | ChoiceFunction | None = None
    # Understood, without effect here
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    verbosity: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    # Extensions
    chat_template_kwargs: dict[str, Any] | None = None
    think: bool | str | None = None
    reasoning: Reasoning | None = None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    refused: ClassVar[dict[str, str]] = {k: v for k, v in Sampling.refused.items() if k != "best_of"}

    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    # Understood, without effect here
    user: Any = None
    # Extensions
    keep_alive: int | float | str | None = None
    num_ctx: int | None = None
    options: dict[str, Any] | None = None


class RerankDocument(msgspec.Struct):
    """A document of a RerankRequest, as an object."""

    text: str


class RerankRequest(msgspec.Struct, kw_only=True):
    """POST /v1/rerank, as Jina's, Cohere's and llama.cpp's servers take it."""

    model: str
    query: str
    documents: list[str | RerankDocument]
    top_n: int | None = None
    return_documents: bool = False
    # Extensions
    keep_alive: int | float | str | None = None


class Ranked(msgspec.Struct, omit_defaults=True):
    """A document's place in the list that was asked about, and its score."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankResponse(msgspec.Struct, kw_only=True):
    """The answer of /v1/rerank: the best document first."""

    object: str = "list"
    model: str
    results: list[Ranked]
    usage: dict[str, int]


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
    function_call: OutFunction | None = None


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
    """A model of /v1/models, as clients of OpenAI, vLLM (`max_model_len`), llama.cpp and Anthropic read it."""

    id: str
    created: int
    max_model_len: int
    context_length: int
    display_name: str
    created_at: str
    capabilities: list[str]
    type: str = "model"
    object: str = "model"
    owned_by: str = "kvant"


def out_usage(usage: Usage) -> OutUsage:
    """Return counts in OpenAI's form."""
    cached = {"cached_tokens": usage.prompt_tokens_details.cached_tokens}
    return OutUsage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, cached)


class Models(msgspec.Struct):
    """The answer of /v1/models; what comes last is for Anthropic's clients."""

    data: list[ListedModel]
    object: str = "list"
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None
