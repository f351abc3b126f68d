"""The public face: every command has its function, and whatever its functions take and give can be named."""

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator

import pytest

import kvant
from kvant.cli.main import COMMANDS

WITHOUT_A_FUNCTION = {
    "key": "keeps the gateway's file of keys, which only a gateway reads",
    "run": "talks with a person at a terminal; a program serves the model, or measures it with evaluate",
    "serve": "is a process that serves until it is told to stop",
    "top": "draws what a gateway does now on a terminal",
}
PROTOCOLS = ["Target", "Workshop", "Engine", "EngineSpec", "Artifact", "Material", "Candidate"]
"""What others implement or make, so that the types of their members must be public, too."""

FUNCTIONS = [name for name in kvant.__all__ if inspect.isfunction(getattr(kvant, name))]


def classes_of(hint: object) -> Iterator[type]:
    """Yield kvant's own classes in a type."""
    arguments = hint if isinstance(hint, list) else typing.get_args(hint)
    if isinstance(hint, type) and not arguments and hint.__module__.startswith("kvant"):
        yield hint
    for argument in arguments:
        yield from classes_of(argument)


def test_every_command_has_a_function_of_its_name_or_a_reason() -> None:
    commands = {command.__name__ for command in COMMANDS}
    assert commands - set(FUNCTIONS) == set(WITHOUT_A_FUNCTION)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_public_function_takes_and_gives_is_public(name: str) -> None:
    hints = typing.get_type_hints(getattr(kvant, name))
    assert "return" in hints
    for found in {kind for hint in hints.values() for kind in classes_of(hint)}:
        assert getattr(kvant, found.__name__, None) is found, f"{name}: {found}"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_others_implement_needs_public_types_alone(name: str) -> None:
    kind = getattr(kvant, name)
    members = [m.fget if isinstance(m, property) else m for key, m in vars(kind).items() if not key.startswith("_")]
    for member in [kind, *filter(inspect.isfunction, members)]:
        for found in {one for hint in typing.get_type_hints(member).values() for one in classes_of(hint)}:
            assert getattr(kvant, found.__name__, None) is found, f"{name}: {found}"


@pytest.mark.parametrize("name", [name for name in kvant.__all__ if name != "__version__"])
def test_what_is_public_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(kvant, name))


def test_a_function_keeps_its_name_when_a_package_of_that_name_is_imported() -> None:
    program = (
        "import kvant, kvant.evaluate.metrics, kvant.calibrate.operators\n"
        "from kvant import calibrate, evaluate\n"
        "from kvant.evaluate import metrics\n"
        "print(callable(kvant.evaluate), callable(kvant.calibrate), callable(calibrate), callable(evaluate))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4
