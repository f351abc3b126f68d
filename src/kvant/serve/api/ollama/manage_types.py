"""Ollama's messages about which models there are.

Source: Ollama's API documentation, https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from typing import Any

import msgspec

from kvant.hub.manifest import Message


class PullRequest(msgspec.Struct, kw_only=True):
    """What is to be pulled; `name` is the older word for `model`."""

    model: str = ""
    name: str = ""
    insecure: bool = False
    stream: bool = True


class CopyRequest(msgspec.Struct, kw_only=True):
    """Which model gets a second name."""

    source: str
    destination: str


class DeleteRequest(msgspec.Struct, kw_only=True):
    """Which model goes."""

    model: str = ""
    name: str = ""


class CreateRequest(msgspec.Struct, kw_only=True):
    """What a model is made from, and how it is used."""

    model: str = ""
    name: str = ""
    from_: str = msgspec.field(default="", name="from")
    files: dict[str, str] = {}
    adapters: dict[str, str] = {}
    template: str | None = None
    system: str | None = None
    license: str | list[str] = []
    parameters: dict[str, Any] = {}
    messages: list[Message] = []
    quantize: str = ""
    stream: bool = True
