"""A gateway on loopback for tests, with tiny models made here: real engine processes, real HTTP."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette

from kvant.recipes.convert.convert import convert
from kvant.serve.library import DirectoryLibrary, Library, ModelFile
from kvant.serve.loaded import LoadedModel
from kvant.serve.settings import Settings
from kvant.testing.tiny_models import write_tiny_model

T = TypeVar("T")
TOOLS_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call functions. Their signatures are within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each call return a json object within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


@dataclass(frozen=True)
class Served:
    """A gateway that listens.

    Attributes:
        url: Where.
        app: The application.
        loop: Where it runs.
    """

    url: str
    app: Starlette
    loop: asyncio.AbstractEventLoop

    def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something on the gateway's own event loop and return what it gives."""

        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def loaded(self) -> list[LoadedModel]:
        """Return the models that are loaded."""

        async def look() -> list[LoadedModel]:
            found: list[LoadedModel] = self.app.state.kvant.scheduler.loaded()
            return found

        return self.ask(look)


class WithSettings:
    """A library whose models have settings of their own, as the store's do."""

    def __init__(self, library: Library, settings: dict[str, Any]) -> None:
        self._library, self._settings = library, settings

    def list(self) -> list[ModelFile]:
        return [self._with(file) for file in self._library.list()]

    def find(self, name: str) -> ModelFile:
        return self._with(self._library.find(name))

    def _with(self, file: ModelFile) -> ModelFile:
        return msgspec.structs.replace(file, settings=self._settings.get(file.name, file.settings))


def write_gguf(
    path: Path, *, template: str | None = None, seed: int = 0, context: int = 2048, tokenizer: str | None = None
) -> Path:
    """Write a tiny random model as GGUF; its end token is one that it never chooses."""
    source = path.with_suffix("")
    write_tiny_model("llama", source, seed=seed, max_position_embeddings=context, tokenizer=tokenizer)
    if template is not None:
        config = source / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    convert(source, path, to="gguf")
    return path


@contextlib.contextmanager
def served(root: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Served]:
    """Serve every model under a directory on a free port until the block ends."""
    import uvicorn

    from kvant.serve.app import make_app

    given: dict[str, Any] = {"models": root, "context": 512, "parallel": 2, "threads": 1, "drain_s": 1.0} | options
    told = Settings(**given)
    app = make_app(told, WithSettings(DirectoryLibrary(root), settings or {}))
    listener = socket.create_server(("127.0.0.1", 0))
    listening = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            loops.append(asyncio.get_running_loop())
            listening.set()

    server = Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        assert listening.wait(60)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", app, loops[0])
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
