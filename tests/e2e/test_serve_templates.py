"""Prompts equal to transformers' `apply_chat_template`: from the engine, which renders models' own, and from ours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvant.generate.engine import apply_template
from kvant.generate.templates import render
from served import Served, served, write_gguf

GOLDEN = json.loads((Path(__file__).resolve().parent.parent / "golden" / "chat_templates.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = GOLDEN["cases"]
NAMES = [f"{case['template']}-{i}" for i, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    for name, template in GOLDEN["templates"].items():
        write_gguf(root / f"{name}.gguf", template=template)
    with served(root) as running:
        yield running


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_ours(gateway: Served, case: dict[str, Any]) -> None:
    template = GOLDEN["templates"][case["template"]]

    bounded = gateway.app.state.kvant.bounded
    prompt = render(bounded, template, case["messages"], bos_token=GOLDEN["bos_token"], eos_token=GOLDEN["eos_token"])

    assert prompt == case["prompt"]


def test_the_engines(gateway: Served) -> None:
    here = gateway.app.state.kvant

    async def ask(case: dict[str, Any]) -> str:
        async with here.scheduler.lease(here.library.find(case["template"]), caller="test") as lease:
            return await apply_template(lease.worker, case["messages"])

    different = {}
    for name, case in zip(NAMES, CASES, strict=True):
        prompt = gateway.ask(lambda case=case: ask(case))  # type: ignore[misc]
        expected = case["prompt"].replace(GOLDEN["bos_token"], _BOS).replace(GOLDEN["eos_token"], _EOS)
        if prompt.removeprefix(_BOS) != expected.removeprefix(_BOS):  # the tokenizer adds it, not the text
            different[name] = (prompt, expected)
    assert different == {}


_BOS, _EOS = "<|im_start|>", "<|im_end|>"
