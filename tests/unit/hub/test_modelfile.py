"""Modelfiles: what is read, what is refused, and that writing and reading are inverse."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import ModelfileError
from kvant.hub.manifest import Message
from kvant.hub.modelfile import (
    PARAMETERS,
    ROLES,
    Modelfile,
    check_parameters,
    parse_modelfile,
    write_modelfile,
)

EXAMPLE = '''# A helper that answers like a pirate
FROM ./model-Q4_K_M.gguf
parameter temperature 0.5
PARAMETER num_ctx 8192
PARAMETER stop "<|im_end|>"
PARAMETER stop """</s>
"""
TEMPLATE """{{ if .System }}{{ .System }}
{{ end }}{{ .Prompt }}"""

SYSTEM "You are a pirate."
MESSAGE user Who are you?
MESSAGE assistant """I be
Captain Kvant."""
LICENSE """
Apache License
"""
LICENSE MIT
'''


def test_an_example() -> None:
    read = parse_modelfile(EXAMPLE)
    assert read == Modelfile(
        base="./model-Q4_K_M.gguf",
        parameters={"temperature": 0.5, "num_ctx": 8192, "stop": ["<|im_end|>", "</s>\n"]},
        template="{{ if .System }}{{ .System }}\n{{ end }}{{ .Prompt }}",
        system="You are a pirate.",
        messages=(
            Message("user", "Who are you?"),
            Message("assistant", "I be\nCaptain Kvant."),
        ),
        licenses=("\nApache License\n", "MIT"),
    )


def test_quotes_of_one_kind_may_close_lines_below() -> None:
    assert parse_modelfile('FROM a\nSYSTEM "one\ntwo"\nPARAMETER seed 1').system == "one\ntwo"
    assert parse_modelfile('FROM a\nSYSTEM "Hi" he said\n').system == '"Hi" he said'
    assert parse_modelfile('FROM a\nSYSTEM say """ twice\n').system == 'say """ twice'


def test_windows_line_ends_and_a_missing_last_one() -> None:
    assert parse_modelfile("FROM a\r\nSYSTEM b").system == "b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no FROM"),
        ("FROM", "has no FROM"),
        ("FROM a\nFROM b", "line 2: FROM is there a second time"),
        ("FROM a\nSYSTEM x\nSYSTEM y", "line 3: SYSTEM is there a second time"),
        ("FROM a\nRUN rm", "line 2: 'RUN' is not an instruction"),
        ("FROM a\nPARAMETER warmth 1", "'warmth' is not known"),
        ("FROM a\nPARAMETER num_ctx many", "num_ctx 'many' is not a whole number"),
        ("FROM a\nPARAMETER num_ctx 99999999999999999999", "is not a whole number"),
        ("FROM a\nPARAMETER top_p nan", "top_p 'nan' is not a number"),
        ("FROM a\nPARAMETER use_mmap maybe", "is not true or false"),
        ("FROM a\nMESSAGE robot hi", "'robot' is not one of"),
        ('FROM a\nSYSTEM """never closed', "is never closed"),
        ('FROM a\nSYSTEM """closed""" more', "more follows"),
        ("FROM a\nPARSER qwen3", "PARSER names code inside Ollama"),
        ("FROM a\nDRAFT b", "option of serving"),
        ("FROM a\n" + "LICENSE x\n" * 1100, "more than 1024 instructions"),
        ("FROM a\nSYSTEM " + "x" * (4 << 20), "above the limit"),
    ],
)
def test_what_cannot_be_followed_is_refused(text: str, said: str) -> None:
    with pytest.raises(ModelfileError, match=said):
        parse_modelfile(text)


def test_what_has_no_meaning_here_is_named() -> None:
    read = parse_modelfile("FROM a\nPARAMETER mirostat 2\nREQUIRES 0.14.0\n")
    assert read.ignored == ("PARAMETER mirostat", "REQUIRES 0.14.0")
    assert read.parameters == {}


def test_parameters_from_json_are_typed() -> None:
    assert check_parameters({"num_ctx": 4096, "temperature": 1, "stop": ["a", "b c"], "mirostat": 1}) == {
        "num_ctx": 4096, "temperature": 1.0, "stop": ["a", "b c"],
    }  # fmt: skip
    wrong: list[dict[str, object]] = [
        {"num_ctx": "x"},
        {"nope": 1},
        {"temperature": None},
        {"stop": [{}]},
        {"num_ctx": 1.5},
    ]
    for bad in wrong:
        with pytest.raises(ModelfileError):
            check_parameters(bad)


# Any text but what the language cannot say.
texts = st.text().filter(lambda t: '"""' not in t and "\r\n" not in t)
shown = texts.filter(lambda t: t.strip() != "")


def values(name: str) -> st.SearchStrategy[object]:
    kind = PARAMETERS[name]
    if kind is list:
        return st.lists(texts, min_size=1, max_size=3)
    if kind is int:
        return st.integers(-(2**63), 2**63 - 1)
    return st.booleans() if kind is bool else st.floats(allow_nan=False, allow_infinity=False)


modelfiles = st.builds(
    Modelfile,
    base=shown,
    parameters=st.fixed_dictionaries({}, optional={name: values(name) for name in PARAMETERS}),
    template=st.none() | texts,
    system=st.none() | texts,
    adapters=st.lists(texts, max_size=2).map(tuple),
    licenses=st.lists(texts, max_size=2).map(tuple),
    messages=st.lists(st.builds(Message, st.sampled_from(ROLES), texts), max_size=3).map(tuple),
)


# A busy machine is no reason to fail.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(modelfiles)
def test_what_is_written_is_read_again(modelfile: Modelfile) -> None:
    assert parse_modelfile(write_modelfile(modelfile)) == modelfile


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet='FROMSYSTEM fromPARAMETERstop"\n# {}.\r', max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        read = parse_modelfile("FROM a\n" + text)
    except ModelfileError:
        return
    assert read.base == "a"


def test_a_text_that_the_language_cannot_say_is_refused() -> None:
    with pytest.raises(ModelfileError, match="cannot say"):
        write_modelfile(Modelfile(base="a", system='x """ y'))
