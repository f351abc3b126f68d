"""What an answer must look like: a request's schema or grammar, bounded and tried before the engine is asked.

The engine follows a grammar of llguidance's. One that it does not understand it drops without a word, so each is tried
first, by the same code in a process with limits. What of a schema cannot be enforced is an error under `strict`, and
else named in the answer's header.
"""

import dataclasses
import re
from typing import Any, TypeVar

from starlette.requests import Request

from kvant.errors import ApiError, LimitError
from kvant.generate.grammars import LLGUIDANCE, lark
from kvant.generate.prompt import Chat, Text
from kvant.runtime.bounded import Bounded, Tried, Try
from kvant.serve.api.grammars import depth_of, without_tokens
from kvant.serve.api.schemas import Budget, Schema, bound, check_tools, loosely
from kvant.serve.api.wire import note_ignored, share

PromptT = TypeVar("PromptT", bound=Chat | Text)
MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_GRAMMAR_DEPTH = 64
ANY_OBJECT: dict[str, Any] = {"type": "object"}
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Keeps a weak model from writing white space without end."""

_REASON = re.compile(r"^.*failed to compile JSON schema: ")


async def settled(request: Request, prompt: PromptT) -> PromptT:
    """Return a prompt whose answer the engine can be held to, as far as a client's format and tools can be.

    Args:
        request: Whose answer's header tells what is not enforced.
        prompt: What the client asked for.

    Raises:
        ApiError: A schema or grammar is too large, cannot be followed, or not as strictly as asked.
    """
    wanted, budget = prompt.format, Budget()
    if isinstance(prompt, Chat):
        check_tools(len(prompt.tools))
    if wanted.schema is not None:
        schema = await _by_schema(request, wanted.schema, wanted.where, budget, strict=wanted.strict)
        if isinstance(prompt, Chat) and prompt.tools and not prompt.forced:
            _tell(request, [f"{wanted.where}.{key}" for key in loosely(schema)], wanted.where, strict=wanted.strict)
        prompt = dataclasses.replace(prompt, format=dataclasses.replace(wanted, schema=schema))
    elif wanted.grammar is not None:
        await _check_grammar(request, wanted.grammar, wanted.where)
    if isinstance(prompt, Chat) and prompt.tools:
        if prompt.forced:
            return dataclasses.replace(prompt, call=await _by_calls(request, prompt.tools, budget))
        for place, paths, strict in await share(request).walk(_loose, prompt.tools, budget):
            _tell(request, paths, place, strict=strict)
    return prompt


async def _by_schema(
    request: Request, schema: dict[str, Any], where: str, budget: Budget, *, strict: bool
) -> dict[str, Any]:
    """Return a schema that the engine follows as it is."""
    found = await share(request).walk(bound, schema, where, budget=budget)
    made, error = await _followed(request, found, where)
    if error is not None and ("regex" in error or "costly" in error):
        found = await share(request).walk(bound, schema, where, patterns=False)
        made, error = await _followed(request, found, where)
    if error is not None:
        raise ApiError(f"{where}: {error}. Send a schema that can be followed.", code="invalid_schema", param=where)
    _tell(request, [f"{where}.{path}" for path in found.unenforced], where, strict=strict)
    return made


async def _by_calls(request: Request, tools: list[dict[str, Any]], budget: Budget) -> dict[str, Any]:
    """Return the schema of a call of one of the tools, as `{"name": ..., "arguments": ...}`."""
    where = "tools"
    calls, parts, unenforced = [], {}, []
    found = await share(request).walk(_bound_all, tools, budget)
    for i, (tool, schema) in enumerate(zip(tools, found, strict=True)):
        function, place = tool["function"], f"{where}[{i}]"
        paths = [f"{place}.{path}" for path in schema.unenforced]
        _tell(request, paths, place, strict=function.get("strict") is True)
        unenforced += schema.unenforced
        parts[str(i)] = schema.schema
        properties = {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{i}"}}
        calls.append(
            {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        )
    made, error = await _followed(request, Schema({"anyOf": calls, "$defs": parts}, unenforced), where)
    if error is not None:
        raise ApiError(f"{where}: {error}. Send schemas that can be followed.", code="invalid_schema", param=where)
    return made


def _bound_all(tools: list[dict[str, Any]], budget: Budget) -> list[Schema]:
    """Return the schemas of tools, of which one must be called, as they will stand in the schema of the call."""
    return [
        bound(tool["function"].get("parameters") or ANY_OBJECT, f"tools[{i}]", root=f"/$defs/{i}", budget=budget)
        for i, tool in enumerate(tools)
    ]


def _loose(tools: list[dict[str, Any]], budget: Budget) -> list[tuple[str, list[str], bool]]:
    """Return what calls of tools that may be called are not held to: the engine's own grammar holds them to less.

    Returns:
        For every tool its place, the places in it, and whether nothing may be.
    """
    told = []
    for i, tool in enumerate(tools):
        function, place = tool["function"], f"tools[{i}]"
        schema = function.get("parameters")
        if schema:
            found = bound(schema, place, budget=budget).unenforced
            paths = found + [path for path in loosely(schema) if path not in found]
            told.append((place, [f"{place}.{path}" for path in paths], function.get("strict") is True))
    return told


async def _check_grammar(request: Request, grammar: str, where: str) -> None:
    """Refuse a grammar that is too large or too deep, or that the engine could not follow."""
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise ApiError(
            f"{where}: {len(grammar)} characters exceed the limit of {MAX_GRAMMAR_CHARACTERS}. Send a smaller one.",
            param=where,
        )
    if depth_of(grammar) > MAX_GRAMMAR_DEPTH:
        raise ApiError(f"{where}: groups are nested deeper than {MAX_GRAMMAR_DEPTH}. Send a flatter one.", param=where)
    if grammar.startswith(LLGUIDANCE):
        error = await _tried(request, Try(grammar, "lark"), where)
    else:
        error = await _tried(request, Try(without_tokens(grammar), "gbnf"), where)
    if error is not None:
        raise ApiError(f"{where}: {error.splitlines()[0]}. Correct it.", code="invalid_grammar", param=where)


async def _followed(request: Request, found: Schema, where: str) -> tuple[dict[str, Any], str | None]:
    """Return a schema as the engine gets it, and why it could not follow it."""
    schema = {"x-guidance": COMPACT} | found.schema
    error = await _tried(request, Try(lark(schema), "lark"), where)
    if error is not None and "oneOf" in error:
        found.unenforced.append("oneOf")
        schema = {"x-guidance": COMPACT | {"coerce_one_of": True}} | found.schema
        error = await _tried(request, Try(lark(schema), "lark"), where)
    return schema, error and _REASON.sub("", error).splitlines()[0][:300].rstrip(".: ")


async def _tried(request: Request, trial: Try, where: str) -> str | None:
    try:
        reply = await share(request).run(Bounded.ask, trial, where)
    except LimitError as error:
        raise ApiError(str(error), code="too_costly", param=where) from None
    assert isinstance(reply, Tried)
    return reply.error


def _tell(request: Request, paths: list[str], where: str, *, strict: bool) -> None:
    """Note what is not enforced; an error where it must be."""
    if paths and strict:
        shown = ", ".join(paths[:8])
        raise ApiError(
            f"{where}: {shown} cannot be enforced here, and strict is set. Leave it out, or strict.",
            code="unsupported_schema", param=where,
        )  # fmt: skip
    note_ignored(request, paths)
