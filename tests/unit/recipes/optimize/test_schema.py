import os
from pathlib import Path

import pytest

from kvant.errors import FormatError, KvantError, ValueRangeError
from kvant.recipes.goal import Budget
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.schema import MAX_RECIPE_BYTES, read_recipe, write_recipe

FULL = """\
recipe: 1
source: ../models/little
budget: {max_size_bytes: 90_000_000, device: phone-6gb}
calibrate: {text: texts/book.txt, windows: 8, seed: 3}
imatrix: some.gguf
candidates: [Q4_K_M, Q4_0]
refine: 0
context: 512
measure: {text: held.txt, chunks: 2, all: yes}
"""


def written(directory: Path, text: str | bytes) -> Path:
    path = directory / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_field_reaches_the_request(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, FULL)) == Request(
        source=tmp_path / "../models/little", budget=Budget(max_size_bytes=90_000_000, device="phone-6gb"),
        calibrate=str(tmp_path / "texts/book.txt"), calibrate_windows=8, calibrate_seed=3,
        imatrix=tmp_path / "some.gguf", presets=("Q4_K_M", "Q4_0"), refinements=0, context=512,
        text=tmp_path / "held.txt", chunks=2, measure_all=True,
    )  # fmt: skip


def test_paths_are_written_as_seen_from_the_recipe(tmp_path: Path) -> None:
    asked = read_recipe(written(tmp_path, FULL))
    out = tmp_path / "deeper" / "still"
    out.mkdir(parents=True)
    write_recipe(out / "recipe.yaml", asked)
    text = (out / "recipe.yaml").read_text()
    assert str(tmp_path) not in text
    assert "source: ../../../models/little\n" in text
    assert "text: ../../texts/book.txt\n" in text
    again = read_recipe(out / "recipe.yaml")
    assert os.path.normpath(again.source) == os.path.normpath(asked.source)


@pytest.mark.parametrize("word", ["self", "bundled"])
def test_the_words_for_a_text_stay_words_and_files_called_so_stay_files(word: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(path, Request(source=tmp_path / "m", calibrate=word))
    assert f"text: {word}\n" in path.read_text()
    assert read_recipe(path).calibrate == word
    write_recipe(path, Request(source=tmp_path / "m", calibrate=str(tmp_path / word)))
    assert f"text: ./{word}\n" in path.read_text()
    assert read_recipe(path).calibrate == str(tmp_path / word)


def test_a_file_called_as_a_word_stays_one_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "recipe: 1\nsource: m\ncalibrate: {text: ./self}\n")
    assert read_recipe(Path("recipe.yaml")).calibrate == "./self"


def test_a_recipe_in_a_linked_directory_finds_its_model(tmp_path: Path) -> None:
    (tmp_path / "disk" / "results").mkdir(parents=True)
    (tmp_path / "models" / "little").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "results")
    write_recipe(tmp_path / "out" / "recipe.yaml", Request(source=tmp_path / "models" / "little"))
    assert read_recipe(tmp_path / "out" / "recipe.yaml").source.is_dir()
    assert read_recipe(tmp_path / "disk" / "results" / "recipe.yaml").source.is_dir()


def test_the_bytes_of_a_recipe(tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml", Request(source=tmp_path / "m"))
    plain = (
        "recipe: 1\nsource: m\nbudget: {}\ncalibrate:\n  text: bundled\n  windows: 64\n  seed: 1\n"
        "formats:\n- gguf\ncontext: 4096\nmeasure: {}\n"
    )
    assert (tmp_path / "recipe.yaml").read_text() == plain
    asked = Request(
        source=tmp_path / "m", budget=Budget(max_size_bytes=5, device="this"), calibrate="bundled", presets=("Q4_0",),
        imatrix=tmp_path / "i", text=tmp_path / "t", chunks=0, refinements=0, measure_all=True,
    )  # fmt: skip
    write_recipe(tmp_path / "recipe.yaml", asked)
    assert (tmp_path / "recipe.yaml").read_text() == (
        "recipe: 1\nsource: m\nbudget:\n  max_size_bytes: 5\n  device: this\ncalibrate:\n  text: bundled\n"
        "  windows: 64\n  seed: 1\nimatrix: i\nformats:\n- gguf\ncandidates:\n- Q4_0\nrefine: 0\ncontext: 4096\n"
        "measure:\n  text: t\n  chunks: 0\n  all: true\n"
    )


def test_what_is_left_out_is_as_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe: 1\ncalibrate: {}\n")
    assert read_recipe(path, Path("m")) == Request(source=Path("m"), calibrate="bundled")
    with pytest.raises(ValueRangeError, match="names no source"):
        read_recipe(path)


BOMB = "recipe: 1\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expected `object`, got `null`"),
        ("[1, 2]", "Expected `object`, got `array`"),
        ("source: a\n", "missing required field `recipe`"),
        ("recipe: 2\n", "recipe: 2 is newer than 1"),
        ("recipe: 1\nsauce: a\n", "unknown field `sauce`"),
        ("recipe: 1\nbudget: {max_size: 90MB}\n", "unknown field `max_size`"),
        ("recipe: 1\nbudget: {max_size_bytes: 90MB}\n", "Expected `int | null`, got `str`"),
        ("recipe: 1\nbudget: {max_size_bytes: -5}\n", "--max-size: -5 is not above 0"),
        ("recipe: 1\ncandidates: Q4_0\n", "Expected `array`, got `str`"),
        ("recipe: 1\ncalibrate: {windows: 1.5}\n", "Expected `int`, got `float`"),
        ("recipe: 1\ncalibrate: {seed: -1}\n", "Expected `int` >= 0"),
        ("recipe: 1\nrefine: 99\n", "Expected `int` <= 10"),
        ("recipe: 1\nrecipe: 1\n", "a key that is there twice"),
        ("recipe: 1\nsource: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("recipe: 1\nsource: &a b\nimatrix: *a\n", r"an alias \(\*name\)"),
        (BOMB, r"an alias \(\*name\)"),
        ("recipe: 1\n{: x\n", "breaks the recipe format"),
        ("recipe: 1\nsource: " + "[" * 30_000, "breaks the recipe format"),
        ("recipe: 1\ncontext: " + "9" * 20_000, "breaks the recipe format"),
        (b"recipe: 1\nsource: \xff\xfe\n", "breaks the recipe format"),
        ("recipe: 1\nsource: 2024-13-45\n", "breaks the recipe format"),
        ("#" * (MAX_RECIPE_BYTES + 1), "bytes is no recipe"),
        ("recipe: 1\n--- \nrecipe: 1\n", "breaks the recipe format"),
    ],
)  # fmt: skip
def test_hostile_and_mistaken_recipes_are_refused(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        read_recipe(written(tmp_path, text))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KvantError, match="No such file"):
        read_recipe(tmp_path / "absent.yaml")
