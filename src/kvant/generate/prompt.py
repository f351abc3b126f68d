"""A request to a model, whichever API it came by: a conversation or a text, made into what the engine is sent.

The model's own template is rendered by the engine, in its process. A template that a request or a model's settings give
in its place is rendered by `templates`, with bounded work, and the engine gets the text. Where a tool must be called,
the engine writes the call under a JSON schema, since a model that is only told so may answer in words.
"""

import asyncio
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from kvant.errors import ApiError, ContextExceededError
from kvant.generate import templates, thoughts, turns
from kvant.generate.engine import apply_template, properties, special_token, tokenize
from kvant.generate.grammars import lark
from kvant.generate.media import Media, flattened, media_of
from kvant.hub.manifest import ModelSettings
from kvant.runtime import plaintext
from kvant.runtime.bounded import Bounded
from kvant.runtime.plaintext import Disguise, Trusted
from kvant.runtime.server.workers import Worker

CHAT, TEXT, INFILL = "/v1/chat/completions", "/completion", "/infill"
P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class Turns(Protocol):
    """Has bounded work done when it is the caller's turn."""

    async def run(self, work: Callable[Concatenate[Bounded, P], ResultT], *args: P.args, **more: P.kwargs) -> ResultT:
        """Call something that asks what it is given as its first argument, in a thread."""
        ...


class Prompt(Protocol):
    """What the engine is asked."""

    @property
    def forced(self) -> list[str]:
        """The tools of which one must be called: the answer is the call, as JSON; empty where it is text."""
        ...

    async def request(self, worker: Worker, bounded: Turns) -> tuple[str, dict[str, Any]]:
        """Return the engine's route and the body to send there; `bounded` does what a client's bytes could prolong."""
        ...

    async def shorter(self, error: ContextExceededError, worker: Worker) -> Self | None:
        """Return a prompt that is shorter, for a client that asked for that; None if nothing can be left out."""
        ...

    def plainer(self) -> Self | None:
        """Return a prompt in a form that more templates take; None if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What an answer must look like; the gateway makes what the engine can follow of what a client asks for.

    Attributes:
        schema: JSON schema; None for none.
        grammar: GBNF, or a grammar of llguidance's.
        where: The field of the request that it came in.
        strict: Whether all of it must be enforced.
    """

    schema: dict[str, Any] | None = None
    grammar: str | None = None
    where: str = "format"
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation.

    Attributes:
        messages: In OpenAI's form; the content of one is a text, or a list where it holds pictures or sounds.
        sampling: Under the engine's names; see `sampling.engine_options`.
        tools: In OpenAI's form.
        tool_choice: `auto`, `none`, `required`, or None.
        parallel_tool_calls: Whether several tools may be called at once; None for the template's way.
        format: What the answer must look like.
        think: Whether the model should think first; None for its own way.
        effort: How much it should think, for templates that know.
        arguments: What else the template is told.
        template: In place of the model's.
        context: Text that goes before the rendered messages, tokens.
        top_logprobs: Tokens to tell probabilities of; None for none.
        verbose: Ask for the rendered prompt and the stop word at the end.
        call: JSON schema of a call of one of the tools, where one must be called.
        disguise: What of it spells control tokens that are to be text; see `guard`.
        joiner: What was put into it for the same reason, to be taken out of the answer.
    """

    messages: list[dict[str, Any]]
    sampling: dict[str, Any]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    format: Format = Format()
    think: bool | None = None
    effort: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    context: list[int] = field(default_factory=list)
    top_logprobs: int | None = None
    verbose: bool = False
    call: dict[str, Any] | None = None
    disguise: Disguise | None = None
    joiner: str = ""

    @property
    def written(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str | None]:
        """What a template is given of what the client wrote."""
        return self.messages, self.tools, self.effort

    @property
    def media(self) -> list[Media]:
        """The pictures and sounds in it."""
        return media_of(self.messages)

    @property
    def forced(self) -> list[str]:
        """See `Prompt`."""
        return [tool["function"]["name"] for tool in self.tools] if self.tool_choice == "required" else []

    async def request(self, worker: Worker, bounded: Turns) -> tuple[str, dict[str, Any]]:
        """See `Prompt`."""
        if not self.by_engine(worker) or self.context or self.forced or self.disguise:
            return await self._as_text(worker, bounded)
        body: dict[str, Any] = {"messages": self.messages, "stream": True, "stream_options": {"include_usage": True}}
        body |= self._common()
        if self.tools:
            body["tools"] = self.tools
            body["tool_choice"] = self.tool_choice or "auto"
            if self.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = self.parallel_tool_calls
        if self.format.schema is not None:
            body |= await self._bound(worker, self.format.schema, body.get("chat_template_kwargs", {}))
        if self.verbose:
            body["verbose"] = True
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": max(1, self.top_logprobs)}
        return CHAT, body

    def by_engine(self, worker: Worker) -> bool:
        """Whether the engine renders the messages: by the template that it was loaded with."""
        return self.template == worker.template

    async def _bound(self, worker: Worker, schema: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """Return what holds the answer to a schema, after the model's thinking where it does think."""
        template = str((await properties(worker)).get("chat_template", ""))
        if self.tools or thoughts.CHANNELS in template:  # their form is known to the engine alone
            return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        before = ""
        if any(end in template for _, end in thoughts.TAGS):
            more = {"chat_template_kwargs": arguments} if arguments else {}
            prompt = await apply_template(worker, self.messages, **more)

            async def token(text: str) -> int | None:
                return await special_token(worker, text)

            before = await thoughts.rules(template, prompt, token, thinks=self.think is not False)
        return {"grammar": lark(schema, before)}

    def _common(self) -> dict[str, Any]:
        body: dict[str, Any] = {"cache_prompt": True} | self.sampling
        if self.format.grammar is not None:
            body["grammar"] = self.format.grammar
        arguments = dict(self.arguments)
        if self.think is not None:
            arguments["enable_thinking"] = self.think
        if self.effort is not None:
            arguments["reasoning_effort"] = self.effort
        if arguments:
            body["chat_template_kwargs"] = arguments
        return body

    async def _as_text(self, worker: Worker, bounded: Turns) -> tuple[str, dict[str, Any]]:
        """Return the request with the messages rendered already."""
        if self.tools and not self.forced:
            raise ApiError(
                "tools: are read only from answers to a template that the engine understands, and it refused this "
                "model's. Give the model another TEMPLATE, or leave tools out.",
                param="tools",
            )
        body = self._common()
        arguments = body.pop("chat_template_kwargs", {})
        text = await self._rendered(worker, bounded, arguments)
        body |= {"prompt": await self._sent(worker, text), "stream": True}
        call = await asyncio.to_thread(self.disguise.joined, self.call, self.joiner) if self.disguise else self.call
        schema = call if self.forced else self.format.schema
        if schema is not None:
            body["grammar"] = lark(schema)
        if self.top_logprobs is not None:
            body["n_probs"] = max(1, self.top_logprobs)
        return TEXT, body

    async def _sent(self, worker: Worker, text: str) -> list[int] | dict[str, Any]:
        """Return a rendered text as tokens, or with its pictures and sounds as what the engine makes them of."""
        if self.media:
            if self.context:
                raise ApiError(
                    "context: cannot be used together with images. Send the conversation to /api/chat.", param="context"
                )
            start = str((await properties(worker)).get("bos_token", ""))
            is_twice = start and text.startswith(start) and len(await tokenize(worker, start, special=True)) > 1
            if is_twice and not self.by_engine(worker):  # written by the template and added by the tokenizer
                text = text.removeprefix(start)
            return {"prompt_string": text, "multimodal_data": [part.base64 for part in self.media]}
        if self.disguise is None:
            made = await tokenize(worker, text, special=not self.context)
        else:
            made = await _as_tokens(worker, plaintext.tokens(text, self.disguise, start=not self.context))
        tokens = self.context + made
        if len(tokens) > 1 and tokens[0] == tokens[1] and not self.context:
            bos = (await properties(worker)).get("bos_token")
            if bos and text.startswith(bos):  # written by the template and added by the tokenizer
                tokens = tokens[1:]
        if not tokens:
            raise ApiError("template: leaves nothing to send to the model. Use another one.", param="template")
        return tokens

    async def _rendered(self, worker: Worker, bounded: Turns, arguments: dict[str, Any]) -> str:
        messages, tools, effort = self.written
        if self.disguise:
            messages, tools, effort = await asyncio.to_thread(self.disguise.hidden, self.written)
        if effort is not None:
            arguments = arguments | {"reasoning_effort": effort}
        if self.by_engine(worker):
            more: dict[str, Any] = {"chat_template_kwargs": arguments} if arguments else {}
            if tools:
                more["tools"] = tools
            return await apply_template(worker, messages, **more)
        assert self.template is not None, "the engine renders the model's own"
        known = await properties(worker)
        messages = flattened(messages, str(known.get("media_marker", "")))
        return await bounded.run(
            templates.render, self.template, messages, bos_token=str(known.get("bos_token", "")),
            eos_token=str(known.get("eos_token", "")), arguments=arguments, tools=tools or None,
        )  # fmt: skip

    def plainer(self) -> Self | None:
        """See `Prompt`."""
        messages = turns.plainer(self.messages)
        return None if messages is None else dataclasses.replace(self, messages=messages)

    async def shorter(self, error: ContextExceededError, worker: Worker) -> Self | None:  # noqa: ARG002
        """Return the conversation without its oldest messages; instructions and the last message stay."""
        if self.context:
            return dataclasses.replace(self, context=self.context[max(1, error.n_tokens - error.n_context + 1) :])
        loose = [i for i, message in enumerate(self.messages[:-1]) if message["role"] != "system"]
        if not loose:
            return None
        excess = 1 - error.n_context / max(error.n_tokens, 1)
        dropped = set(loose[: max(1, math.floor(len(loose) * excess / 2))])
        kept = [message for i, message in enumerate(self.messages) if i not in dropped]
        while len(kept) > 1 and kept[0]["role"] == "tool":  # its call is gone
            del kept[0]
        return dataclasses.replace(self, messages=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to continue, or a gap to fill.

    Attributes:
        text: The text, or token ids.
        sampling: Under the engine's names.
        suffix: What follows the gap; None for no gap.
        format: What the answer must look like.
        top_logprobs: Tokens to tell probabilities of; None for none.
    """

    text: str | list[int]
    sampling: dict[str, Any]
    suffix: str | None = None
    format: Format = Format()
    top_logprobs: int | None = None

    @property
    def forced(self) -> list[str]:
        """See `Prompt`."""
        return []

    async def request(self, worker: Worker, bounded: Turns) -> tuple[str, dict[str, Any]]:  # noqa: ARG002
        """See `Prompt`."""
        body: dict[str, Any] = {"cache_prompt": True, "stream": True} | self.sampling
        if self.format.schema is not None:
            body["grammar"] = lark(self.format.schema)
        if self.format.grammar is not None:
            body["grammar"] = self.format.grammar
        if self.top_logprobs is not None:
            body["n_probs"] = max(1, self.top_logprobs)
        if self.suffix is not None:
            return INFILL, body | {"input_prefix": self.text, "input_suffix": self.suffix}
        return TEXT, body | {"prompt": self.text}

    def plainer(self) -> Self | None:
        """See `Prompt`."""
        return None

    async def shorter(self, error: ContextExceededError, worker: Worker) -> Self | None:
        """Return the text without its beginning."""
        tokens = self.text if isinstance(self.text, list) else await tokenize(worker, self.text, special=False)
        room = min(self.sampling.get("n_predict", error.n_context // 4), error.n_context // 2)
        cut = error.n_tokens - error.n_context + room
        if cut >= len(tokens):
            return None
        return dataclasses.replace(self, text=tokens[cut:])


async def _as_tokens(worker: Worker, asking: plaintext.Asking) -> list[int]:
    """Return what asking for tokens comes to; see `plaintext.drive`. Texts are cut in a thread: they may be long."""
    step = await asyncio.to_thread(plaintext.advance, asking)
    while isinstance(step, plaintext.Ask):
        made = await tokenize(worker, step.text, special=step.add_special, parse=step.parse_special)
        step = await asyncio.to_thread(plaintext.advance, asking, made)
    return step


def opened(messages: list[dict[str, Any]], settings: ModelSettings, system: str | None = None) -> list[dict[str, Any]]:
    """Return messages with what a model's settings put before them, where the request is silent.

    Args:
        messages: The request's.
        settings: The model's.
        system: The request's own instructions outside its messages; an empty text is a wish for none.
    """
    before: list[dict[str, Any]] = [
        Trusted(role=message.role, content=message.content) for message in settings.messages
    ]
    messages = before + messages
    if system:
        return [{"role": "system", "content": system}, *messages]
    if system is None and settings.system and not (messages and messages[0]["role"] == "system"):
        return [Trusted(role="system", content=settings.system), *messages]
    return messages
