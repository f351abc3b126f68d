"""What counts as the same tokenizer and the same prompts, without engines; tests/e2e/test_parity.py asks them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from kvant.errors import LimitError
from kvant.metadata import Value, boolean, string, u32
from kvant.recipes.measure import parity
from kvant.recipes.measure.parity import CONVERSATIONS, FACTS, facts_differ
from kvant.runtime import template
from kvant.runtime.tokenizers import Spoken, rendered

BASE: Mapping[str, Value] = {"tokenizer.ggml.eos_token_id": u32(2)}
GAINED = {
    "tokenizer.chat_template": (string("{{ x }}"), "one"),
    "tokenizer.ggml.eot_token_id": (u32(7), "7"),
    "tokenizer.ggml.bos_token_id": (u32(1), "1"),
    "tokenizer.ggml.add_eos_token": (boolean(True), "True"),
    "tokenizer.ggml.pre": (string("qwen2"), "'qwen2'"),
}


@pytest.mark.parametrize("key", GAINED)
def test_what_a_variant_gained_or_lost_is_a_difference(key: str) -> None:
    value, shown = GAINED[key]
    (gained,) = facts_differ(BASE, {**BASE, key: value})
    (lost,) = facts_differ({**BASE, key: value}, BASE)
    assert (gained.what, gained.theirs, gained.ours) == (FACTS[key], "none", shown)
    assert (lost.what, lost.theirs, lost.ours) == (FACTS[key], shown, "none")
    assert facts_differ({**BASE, key: value}, {**BASE, key: value}) == []


def test_stating_what_goes_without_saying_is_no_difference() -> None:
    said = {"tokenizer.ggml.add_eos_token": boolean(False), "tokenizer.ggml.pre": string("default")}
    assert facts_differ(BASE, {**BASE, **said}) == []


def spoken(prompts: list[str | None]) -> Spoken:
    ids = [None if prompt is None else [len(prompt)] for prompt in prompts]
    return Spoken(engine="e 1", ids=[[1]], around=[1], prompts=prompts, prompt_ids=ids)


@pytest.mark.parametrize(
    ("base", "ours", "counted", "same"),
    [
        ([None] * 5, [None] * 5, 0, 0),
        (["a"] * 5, ["a"] * 5, 5, 5),
        (["a", None, "b", None, None], ["a", None, "b", None, "c"], 3, 2),
        (["a"] * 5, [None] * 5, 5, 0),
    ],
)
def test_prompts_that_nobody_makes_prove_nothing(
    base: list[str | None], ours: list[str | None], counted: int, same: int
) -> None:
    assert len(CONVERSATIONS) == 5
    found = parity._compared(Path("x"), ["x"], spoken(base), spoken(ours), [])
    assert (found.n_prompts, found.n_same_prompts) == (counted, same)
    assert found.is_same == (counted == same)


def test_a_template_that_refuses_is_none_and_one_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"bos": "", "eos": ""}
    refusing = "{{ raise_exception('no') }}"
    assert rendered(refusing, names, CONVERSATIONS[0]) is None
    assert rendered(None, names, CONVERSATIONS[0]) is None
    monkeypatch.setattr(template, "MAX_MODEL_TEMPLATE_CHARACTERS", 5)
    with pytest.raises(LimitError, match="exceed the limit of 5"):
        rendered(refusing, names, CONVERSATIONS[0])
