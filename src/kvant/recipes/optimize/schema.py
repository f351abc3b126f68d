"""The recipe: a YAML document that says what `optimize` is to do, so that a search can be kept, shared and run again.

It holds what a `Request` holds, but for what belongs to one machine or one run: output, threads, jobs, overwriting.
Paths in it are relative to its own directory.
"""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from kvant.documents import check_version
from kvant.errors import FormatError, KvantError, ValueRangeError
from kvant.files import atomic_write
from kvant.recipes.goal import Budget
from kvant.recipes.measure.calibration import BUNDLED, SEED, WINDOWS
from kvant.recipes.optimize.request import Request

RECIPE_FILE = "recipe.yaml"
MAX_RECIPE_BYTES = 1 << 16
RECIPE_FORM = 1
"""The field `recipe` of a recipe."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class CalibrationRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which text to measure the model on.

    Attributes:
        text: `bundled` or a file.
        windows: Most windows of 512 tokens.
        seed: Of the labels drawn from the model's own predictions.
    """

    text: str = BUNDLED
    windows: Count = WINDOWS
    seed: Count = SEED


class MeasureRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How variants are measured.

    Attributes:
        corpus: Bundled text; its held-out half is used.
        text: A file instead.
        chunks: Windows of 512 tokens; 0 for all.
        all: Measure every variant that keeps the budget.
    """

    corpus: str = "default"
    text: str | None = None
    chunks: Count = 16
    all: bool = False


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to do.

    Attributes:
        recipe: Version of this document.
        source: The full-precision model; may be left to the command line.
        budget: Limits to keep.
        calibrate: What to measure for fitted variants; None for none.
        imatrix: Importance file.
        formats: Formats to search.
        candidates: Presets to consider; every sensible one if empty.
        refine: Most mixes to measure after predictions were corrected.
        context: Tokens of context that memory is predicted for.
        measure: How variants are measured.
    """

    recipe: Literal[1]
    source: str | None = None
    budget: Budget = Budget()
    calibrate: CalibrationRecipe | None = None
    imatrix: str | None = None
    formats: tuple[str, ...] = ("gguf",)
    candidates: tuple[str, ...] = ()
    refine: Annotated[int, msgspec.Meta(ge=0, le=10)] = 4
    context: Annotated[int, msgspec.Meta(ge=16, le=1 << 31)] = 4096
    measure: MeasureRecipe = MeasureRecipe()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        KvantError: It cannot be read.
        FormatError: It is no YAML, uses aliases, names a key twice, or holds a field or value that no recipe has.
    """
    import yaml

    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise KvantError(f"{path}: {error.strerror or error}. Check the path.") from error
    if len(data) > MAX_RECIPE_BYTES:
        raise FormatError(f"{path}: more than {MAX_RECIPE_BYTES} bytes is no recipe. Check the path.")
    try:
        document = _load(data)
        if isinstance(document, dict):
            check_version(document, "recipe", RECIPE_FORM, subject=path)
        return msgspec.convert(document, Recipe)
    except FormatError:
        raise
    except (yaml.YAMLError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise FormatError(f"{path}: {problem} breaks the recipe format. See docs/how-to/rebuild.md.") from error


def write_recipe(path: Path, request: Request) -> None:
    """Write the recipe of a request; the file appears whole."""
    import yaml

    document = msgspec.to_builtins(recipe_of(request, path.parent))
    with atomic_write(path) as file:
        file.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())


def request_of(recipe: Recipe, directory: Path, source: Path | None = None) -> Request:
    """Return what a recipe asks for.

    Args:
        recipe: The recipe.
        directory: Where it lies: its paths are relative to that.
        source: The model, in place of the recipe's.

    Raises:
        ValueRangeError: Neither names a model.
    """
    if source is None and recipe.source is None:
        raise ValueRangeError("recipe: names no source. Give the model on the command line: MODEL --recipe FILE.")
    calibrate, measure = recipe.calibrate, recipe.measure
    text = None if calibrate is None else calibrate.text if calibrate.text == BUNDLED else directory / calibrate.text
    return Request(
        source=source or directory / str(recipe.source), budget=recipe.budget,
        calibrate=None if text is None else str(text),
        calibrate_windows=calibrate.windows if calibrate else WINDOWS,
        calibrate_seed=calibrate.seed if calibrate else SEED,
        imatrix=None if recipe.imatrix is None else directory / recipe.imatrix,
        formats=recipe.formats, presets=recipe.candidates, refinements=recipe.refine, context=recipe.context,
        corpus=measure.corpus,
        text=None if measure.text is None else directory / measure.text, chunks=measure.chunks,
        measure_all=measure.all,
    )  # fmt: skip


def recipe_of(request: Request, directory: Path) -> Recipe:
    """Return the recipe of a request, with paths relative to the directory that it will lie in."""
    calibrate = None
    if request.calibrate is not None:
        text = request.calibrate if request.calibrate == BUNDLED else _relative(Path(request.calibrate), directory)
        calibrate = CalibrationRecipe(text=text, windows=request.calibrate_windows, seed=request.calibrate_seed)
    return Recipe(
        recipe=1, source=_relative(request.source, directory), budget=request.budget, calibrate=calibrate,
        imatrix=_relative(request.imatrix, directory) if request.imatrix else None,
        formats=request.formats, candidates=request.presets, refine=request.refinements, context=request.context,
        measure=MeasureRecipe(
            corpus=request.corpus, text=_relative(request.text, directory) if request.text else None,
            chunks=request.chunks, all=request.measure_all,
        ),
    )  # fmt: skip


def _relative(path: Path, directory: Path) -> str:
    """A path as seen from a directory; absolute on another drive, which only Windows has."""
    try:
        return Path(os.path.relpath(path, directory)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def _load(data: bytes) -> Any:
    """Read YAML of plain values, without aliases (they can stand for more than fits in memory) and double keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias (*name)")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key.value for key, _ in node.value]
            if len(keys) != len(set(map(str, keys))):
                raise yaml.YAMLError(f"a key that is there twice among {', '.join(map(str, keys))[:200]}")
            return super().construct_mapping(node, deep)

    return yaml.load(data, Loader=Loader)  # noqa: S506 - a SafeLoader that refuses more
