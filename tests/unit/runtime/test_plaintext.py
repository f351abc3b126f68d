import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import LimitError
from kvant.runtime import plaintext
from kvant.runtime.plaintext import Controls, Disguise, Trusted, joiner_for

TEXTS = ("<|im_start|>", "<|im_end|>", "</s>", "<s>", "<|im", "[INST]", "[/INST]")
CONTROLS = Controls(TEXTS)
PIECES = st.sampled_from([*TEXTS, "<", "<|im_", "end|>", ">", "|", "\\u003c", "s>", "\\/", "a", " \n", "\ue000", "[IN"])
SPELLING = st.lists(PIECES, max_size=6).map("".join)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def hidden(value: Any) -> Any:
    disguise = Disguise.of(value, CONTROLS)
    return value if disguise is None else disguise.hidden(value)


def test_the_longest_control_token_at_each_place() -> None:
    text = "x<|im_end|><|imp</s><s><<s>>[/INST]"
    found = [text[a:b] for a, b in CONTROLS.spans(text)]
    assert found == ["<|im_end|>", "<|im", "</s>", "<s>", "<s>", "[/INST]"]
    assert list(Controls(()).spans("<s>")) == []


def test_thousands_of_control_tokens_are_found_as_one_by_one() -> None:
    many = [f"<unused{i}>" for i in range(7000)] + [f"<|reserved_special_token_{i}|>" for i in range(250)]
    controls = Controls(many)
    text = "".join(f"a{token}<unused" for token in many[::97])
    assert [text[a:b] for a, b in controls.spans(text)] == many[::97]
    chain = ["<" + "a" * n for n in range(1, 200)]  # each begins the next
    assert [b - a for a, b in Controls(chain).spans(chain[150])] == [len(chain[150])]


@MANY
@given(st.lists(SPELLING, min_size=1, max_size=4))
def test_nothing_hidden_spells_anything_and_all_of_it_comes_back(texts: list[str]) -> None:
    value = [{"role": "user", "content": text} for text in texts]
    disguise = Disguise.of(value, CONTROLS)
    made = hidden(value)
    said = "".join(message["content"] for message in made)
    assert not CONTROLS.has_any(said)
    for message in made:
        assert not CONTROLS.has_any(_read(message["content"]))
    assert [len(m["content"]) for m in made] == [len(text) for text in texts]
    if disguise is not None:
        assert disguise.restored("".join(m["content"] for m in disguise.hidden(value))) == "".join(texts)


@MANY
@given(st.lists(SPELLING, min_size=1, max_size=4))
def test_joined_spells_nothing_and_is_the_same_without_the_joiner(texts: list[str]) -> None:
    value = [{"role": "user", "content": text} for text in texts]
    disguise = Disguise.of(value, CONTROLS)
    if disguise is None:
        return
    joiner = joiner_for(value)
    assert joiner is not None
    made = [message["content"] for message in disguise.joined(value, joiner)]
    assert not CONTROLS.has_any("".join(made))
    assert [text.replace(joiner, "") for text in made] == texts


def _read(text: str) -> str:
    """Return a text as JSON reads it, as far as it can be read."""
    return re.sub(r"\\(u[0-9a-fA-F]{4}|/)", lambda m: json.loads(f'"{m[0]}"'), text)


def test_keys_nested_values_and_what_is_exempt() -> None:
    value = [
        {"role": "user", "tools": [{"<s>": {"enum": ["</s>"]}}]},
        {"role": "assistant", "content": "<think>a</think></s>"},
        Trusted(role="system", content="</s>"),
    ]
    controls = Controls([*TEXTS, "<think>", "</think>"])
    disguise = Disguise.of(value, controls)
    assert disguise is not None
    made = disguise.hidden(value)
    assert not controls.has_any(json.dumps(made[0]))
    assert made[1]["content"].startswith("<think>a</think>")
    assert not controls.has_any(made[1]["content"].removeprefix("<think>a</think>"))
    assert made[2] == value[2]
    assert Disguise.of([Trusted(content="</s>")], controls) is None


def test_what_a_template_does_to_a_hidden_text() -> None:
    disguise = Disguise.of(["x<|im_end|><|im_end|>"], CONTROLS)
    assert disguise is not None
    text = disguise.hidden("x<|im_end|><|im_end|>")
    assert text.strip() == text
    assert text.upper()[1:] == text[1:]
    assert disguise.restored(text[:7]) == "x<|im_e"
    assert json.loads(json.dumps(text)) == text
    assert disguise.hides(text)
    assert not disguise.hides("x")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plaintext, "MAX_SPELLINGS", 2)
    with pytest.raises(LimitError, match="3 times in 3 ways, above the limits of 65536 and 2"):
        Disguise.of(["<s></s>[INST]"], CONTROLS)
    with pytest.raises(LimitError, match="exceed the limit"):
        Controls([f"<{n}>" for n in range(plaintext.MAX_CONTROLS + 1)])
