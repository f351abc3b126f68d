"""What `optimize` is asked comes back from its recipe, and from the command that repeats the search."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvant.cli.main import app
from kvant.quant.presets import PRESETS
from kvant.recipes.goal import Budget
from kvant.recipes.measure.textname import WORDS, file_named
from kvant.recipes.optimize.fields import FIELDS, Field, Kind
from kvant.recipes.optimize.repeat import search_words
from kvant.recipes.optimize.request import Request, default_of, is_used, request_of, value_of
from kvant.recipes.optimize.schema import read_recipe, write_recipe

letters = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
name = st.one_of(
    st.sampled_from(
        [
            "self",
            "bundled",
            "-x",
            "--out",
            "-",
            "--",
            "..",
            "two words",
            "quote'",
            "naïve",
            "a=b",
            "null",
            "\x85",
            "a\u2028b",
        ]
    ),
    st.text(letters, min_size=1, max_size=12),
)
path = st.builds(lambda root, parts: Path(root, *parts), st.sampled_from(["", "/"]), st.lists(name, min_size=1))
listed = name.map(lambda text: text.replace(",", "").strip()).filter(bool)

VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.BYTES: st.integers(1, 1 << 50),
    Kind.TIME: st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    Kind.NUMBER: st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    Kind.FLAG: st.booleans(),
    Kind.WORD: name,
    Kind.LIST: st.lists(st.sampled_from(sorted(PRESETS)) | listed, max_size=3).map(tuple),
    Kind.EACH: st.lists(name, max_size=3).map(tuple),
    Kind.PATH: path,
    Kind.TEXT: st.sampled_from(WORDS) | path.map(lambda file: f"./{file}" if str(file) in WORDS else str(file)),
}


def values(field: Field) -> st.SearchStrategy[Any]:
    if field.name == "source":
        return path
    if field.name == "formats":
        return st.lists(st.sampled_from(["gguf", "mlx", "onnx"]), unique=True).map(tuple)
    if field.name == "statistics":
        return st.sampled_from(["engine", "gradients"])
    if field.name == "projector":
        return st.sampled_from(["q8_0", "f16", "none"])
    drawn = st.integers(field.low, field.high) if field.kind is Kind.COUNT else VALUES[field.kind]
    return st.just(default_of(field)) | drawn


requests = st.fixed_dictionaries({field.name: values(field) for field in FIELDS}).map(request_of)
SELF = Request(source=Path("m"), calibrate="self", calibrate_windows=8, calibrate_seed=3, refinements=0)
CALLED_SELF = Request(source=Path("-m"), calibrate="./self", budget=Budget(max_kld=0.02), text=Path("bundled"))


class CapturedError(Exception):
    """The request that the command line made."""


def parsed(words: list[str], patch: pytest.MonkeyPatch) -> Request:
    def capture(request: Request, **_: object) -> None:
        raise CapturedError(request)

    patch.setattr("kvant.recipes.optimize.pipeline.optimize", capture)
    with pytest.raises(CapturedError) as caught:
        typer.main.get_command(app)(words, standalone_mode=False)
    found = caught.value.args[0]
    assert isinstance(found, Request)
    return found


def meant(field: Field, request: Request) -> Any:
    """What a field's value stands for, however it is spelled; None if it says nothing."""
    value = value_of(request, field.name)
    if not is_used(field, request) or value is None:
        return None
    if field.kind is Kind.PATH:
        return os.path.realpath(value)
    if field.kind is Kind.TEXT and (file := file_named(value)) is not None:
        return "file", os.path.realpath(file)
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that a link leads to from elsewhere, as the link calls it."""
    top = tmp_path_factory.mktemp("recipes")
    (top / "deep" / "down").mkdir(parents=True)
    (top / "link").symlink_to(top / "deep" / "down")
    return top / "link"


@settings(deadline=None)
@given(asked=requests)
@example(asked=SELF)
@example(asked=CALLED_SELF)
def test_a_request_comes_back_from_its_recipe(place: Path, asked: Request) -> None:
    write_recipe(place / "recipe.yaml", asked)
    again = read_recipe(place / "recipe.yaml")
    for field in FIELDS:
        if field.place is None:
            assert value_of(again, field.name) == default_of(field)
        else:
            assert meant(field, again) == meant(field, asked), field.name
    first = (place / "recipe.yaml").read_bytes()
    write_recipe(place / "recipe.yaml", again)
    assert (place / "recipe.yaml").read_bytes() == first


@settings(deadline=None)
@given(asked=requests)
@example(asked=SELF)
@example(asked=CALLED_SELF)
def test_a_request_comes_back_from_the_command_that_repeats_it(asked: Request) -> None:
    program, *words = shlex.split(shlex.join(search_words(asked)))
    assert program == "kvant"
    with pytest.MonkeyPatch.context() as patch:
        again = parsed(words, patch)
    for field in FIELDS:
        if field.repeats == "changed" or (field.repeats == "timed" and asked.budget.min_speed_tok_s):
            assert meant(field, again) == meant(field, asked), field.name
        else:
            assert value_of(again, field.name) == default_of(field)
