"""Official clients against a gateway, call by call: prints a table client x call x result, versions named.

`python benchmarks/compatibility.py URL MODEL [--tools MODEL]`, with a gateway at URL that has the models. Clients
that are not installed are left out and named. npm's `ollama` is tried with `--node DIR`, where it is installed.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = tuple[str, Callable[[], Any]]
ASK: list[Any] = [{"role": "user", "content": "Say hello."}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Tell the weather in a city.", "parameters": CITY}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
FEW = {"num_predict": 8}


def of_ollama(url: str, model: str, tools: str) -> list[Call]:
    """Return the calls of PyPI's `ollama`."""
    import ollama

    client = ollama.Client(host=url)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    return [
        ("list", lambda: client.list().models[0].model),
        ("ps", lambda: client.ps().models),
        ("show", lambda: client.show(model).modelinfo),
        ("chat", lambda: client.chat(model, ASK, options=FEW).message.content),
        ("chat, stream", lambda: len(list(client.chat(model, ASK, options=FEW, stream=True)))),
        ("chat, format=schema", lambda: client.chat(model, ASK, format=schema, options={"num_predict": 50}).message),
        ("chat, tools", lambda: client.chat(tools, ASK, tools=TOOLS, options=FEW).message),
        ("chat, logprobs", lambda: client.chat(model, ASK, logprobs=True, top_logprobs=2, options=FEW).logprobs),
        ("generate", lambda: client.generate(model, "Hello", options=FEW).response),
        ("generate, stream", lambda: len(list(client.generate(model, "Hello", options=FEW, stream=True)))),
        ("generate, raw", lambda: client.generate(model, "Hello", raw=True, options=FEW).response),
        ("embed", lambda: client.embed(model, ["a", "b"]).embeddings[1][0]),
        ("embeddings", lambda: client.embeddings(model, "a").embedding[0]),
    ]


def of_openai(url: str, model: str, tools: str) -> list[Call]:
    """Return the calls of PyPI's `openai`."""
    import openai

    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("KVANT_KEY", "none"), max_retries=0)
    chat = client.chat.completions
    flat = [{"type": "function", **FUNCTION}]

    def streamed() -> str:
        with chat.stream(model=model, messages=ASK) as stream:
            return str(stream.get_final_completion().choices[0].message.content)

    def response_events() -> int:
        with client.responses.stream(model=model, input="Say hello.") as stream:
            return len(list(stream))

    return [
        ("models.list", lambda: client.models.list().data[0].id),
        ("models.retrieve", lambda: client.models.retrieve(model).id),
        ("chat.completions", lambda: chat.create(model=model, messages=ASK, max_tokens=8).choices[0].message),
        ("chat.completions, stream", streamed),
        ("chat.completions, tools required",
         lambda: chat.create(model=tools, messages=ASK, tools=TOOLS, tool_choice="required").choices[0]
         .message.tool_calls[0].function.arguments),
        ("chat.completions, json_object",
         lambda: chat.create(model=model, messages=ASK, max_tokens=50, response_format={"type": "json_object"})),
        ("chat.completions, logprobs",
         lambda: chat.create(model=model, messages=ASK, max_tokens=2, logprobs=True, top_logprobs=2)),
        ("completions", lambda: client.completions.create(model=model, prompt="Hello", max_tokens=8).choices[0].text),
        ("embeddings", lambda: client.embeddings.create(model=model, input=["a", "b"]).data[1].embedding[0]),
        ("responses", lambda: client.responses.create(model=model, input="Hi", max_output_tokens=8).output_text),
        ("responses, stream", response_events),
        ("responses, tools required",
         lambda: client.responses.create(model=tools, input="Hi", tools=flat, tool_choice="required").output[0].name),
    ]  # fmt: skip


def of_anthropic(url: str, model: str, tools: str) -> list[Call]:
    """Return the calls of PyPI's `anthropic`."""
    import anthropic

    client: Any = anthropic.Anthropic(base_url=url, api_key=os.environ.get("KVANT_KEY", "none"), max_retries=0)
    use = [{"name": "get_weather", "description": "Tell the weather.", "input_schema": CITY}]

    def streamed() -> Any:
        with client.messages.stream(model=model, messages=ASK, max_tokens=8) as stream:
            return stream.get_final_message().stop_reason

    return [
        ("messages", lambda: client.messages.create(model=model, messages=ASK, max_tokens=8).content[0].text),
        ("messages, stream", streamed),
        ("messages, tools any",
         lambda: client.messages.create(model=tools, messages=ASK, max_tokens=100, tools=use,
                                        tool_choice={"type": "any"}).content[0].input),
        ("messages, stop_sequences",
         lambda: client.messages.create(model=model, messages=ASK, max_tokens=8, stop_sequences=["e"]).stop_reason),
        ("count_tokens", lambda: client.messages.count_tokens(model=model, messages=ASK).input_tokens),
    ]  # fmt: skip


def of_langchain_ollama(url: str, model: str, tools: str) -> list[Call]:
    """Return the calls of `langchain-ollama`."""
    from langchain_ollama import ChatOllama, OllamaEmbeddings

    chat = ChatOllama(model=model, base_url=url, num_predict=8)
    bound = ChatOllama(model=tools, base_url=url, num_predict=8).bind_tools(TOOLS)
    return [
        ("invoke", lambda: chat.invoke("Say hello.").content),
        ("stream", lambda: len(list(chat.stream("Say hello.")))),
        ("bind_tools, invoke", lambda: bound.invoke("Say hello.")),
        ("embed_query", lambda: OllamaEmbeddings(model=model, base_url=url).embed_query("a")[0]),
    ]


def of_langchain_openai(url: str, model: str, tools: str) -> list[Call]:
    """Return the calls of `langchain-openai`."""
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import SecretStr

    key = SecretStr("none")
    base = f"{url}/v1"
    chat = ChatOpenAI(model=model, base_url=base, api_key=key, max_completion_tokens=8)
    bound = ChatOpenAI(model=tools, base_url=base, api_key=key).bind_tools(TOOLS, tool_choice="get_weather")
    vectors = OpenAIEmbeddings(model=model, base_url=base, api_key=key, check_embedding_ctx_length=False)
    return [
        ("invoke", lambda: chat.invoke("Say hello.").content),
        ("stream", lambda: len(list(chat.stream("Say hello.")))),
        ("bind_tools by name, invoke", lambda: bound.invoke("Say hello.").tool_calls[0]["args"]),
        ("embed_query", lambda: vectors.embed_query("a")[0]),
    ]


NODE = """
import { Ollama } from 'ollama'
const [host, model] = process.argv.slice(2)
const client = new Ollama({ host })
const messages = [{ role: 'user', content: 'Say hello.' }]
const options = { num_predict: 8 }
const calls = {
  list: () => client.list(), ps: () => client.ps(), show: () => client.show({ model }),
  chat: () => client.chat({ model, messages, options }),
  'chat, stream': async () => {
    for await (const part of await client.chat({ model, messages, options, stream: true })) part.done
  },
  generate: () => client.generate({ model, prompt: 'Hello', options }),
  embed: () => client.embed({ model, input: ['a', 'b'] }),
}
for (const [name, call] of Object.entries(calls)) {
  try { await call(); console.log(JSON.stringify([name, 'ok'])) }
  catch (error) { console.log(JSON.stringify([name, String(error)])) }
}
"""


def of_node(url: str, model: str, directory: Path) -> tuple[str, list[tuple[str, str]]]:
    """Run npm's `ollama`; return its version and results."""
    script = directory / "compatibility.mjs"
    script.write_text(NODE)
    done = subprocess.run(
        ["node", script.name, url, model], cwd=directory, capture_output=True, text=True, check=False, timeout=300
    )
    version = json.loads((directory / "node_modules/ollama/package.json").read_text())["version"]
    results = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    return version, results or [("start", done.stderr.strip()[-200:])]


CLIENTS = {
    "ollama": of_ollama, "openai": of_openai, "anthropic": of_anthropic, "langchain-ollama": of_langchain_ollama,
    "langchain-openai": of_langchain_openai,
}  # fmt: skip


def attempt(call: Callable[[], Any]) -> str:
    """Make a call; return `ok` or what went wrong."""
    try:
        call()
    except Exception as error:  # whatever a client raises is its result
        return f"{type(error).__name__}: {str(error)[:150]}".replace("\n", " ").replace("|", "/")
    return "ok"


def main() -> int:
    """Print the table; return 1 if a call failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--tools", help="a model with a template for tools")
    parser.add_argument("--node", type=Path, help="a directory with npm's ollama in node_modules")
    options = parser.parse_args()
    rows, missing = [], []
    for name, calls in CLIENTS.items():
        try:
            made = calls(options.url, options.model, options.tools or options.model)
        except ImportError:
            missing.append(name)
            continue
        version = importlib.metadata.version(name)
        rows += [(f"{name} {version}", what, attempt(call)) for what, call in made]
    if options.node:
        version, results = of_node(options.url, options.model, options.node)
        rows += [(f"ollama (npm) {version}", *result) for result in results]
    print("| client | call | result |\n|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    n_ok = sum(row[2] == "ok" for row in rows)
    print(f"\n{n_ok} of {len(rows)} calls ok." + (f" Not installed: {', '.join(missing)}." if missing else ""))
    return 0 if n_ok == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
