"""Messages of OpenAI's /v1/responses. What is not known is left out and named.

Source: OpenAI's API reference, "Responses".
"""

from typing import Any, Literal

import msgspec

from kvant.serve.api.openai.types import Part


class InputItem(msgspec.Struct):
    """An item of the conversation; which fields it needs is told by its type."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    id: str | None = None
    call_id: str | None = None
    namespace: str | None = None
    name: str | None = None
    arguments: str | dict[str, Any] | None = None
    input: str | None = None
    action: Any = None
    operation: Any = None
    output: Any = None


class Tool(msgspec.Struct, omit_defaults=True):
    """A tool that a model may call: a function, a tool that takes any text (`custom`), or a `namespace` of them."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: Any = None
    tools: "list[Tool] | None" = None


class ToolChoice(msgspec.Struct):
    """The one tool that must be called, or those that may be."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[dict[str, Any]] | None = None


class TextFormat(msgspec.Struct):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct):
    """How text is made."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct):
    """How much a model thinks."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """POST /v1/responses."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    top_logprobs: int | None = None
    # Understood, without effect here
    store: Any = None
    metadata: Any = None
    include: list[str] | None = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    max_tool_calls: Any = None
    stream_options: Any = None
