"""Convert by upstream's own converter: what kvant has no family of, and what is asked to go that way.

directory ── checked, laid out anew ── the converter, confined ── the file, proven ── its place
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvant.dtypes import BlockType
from kvant.errors import FormatError, UnsupportedModelError
from kvant.files import commit_file, disk_errors, partial_path
from kvant.formats.huggingface.architectures.registry import BY_CLASS
from kvant.formats.huggingface.architectures.unknown import upstream_class
from kvant.formats.huggingface.architectures.upstream_table import PROJECTORS, TEXT
from kvant.formats.huggingface.config import read_json
from kvant.formats.huggingface.staged import Checked, lay_out
from kvant.formats.huggingface.tokenizer.bpe import is_byte_level
from kvant.formats.huggingface.tokenizer.files import read_object
from kvant.formats.huggingface.tokenizer.pretokenizers import identify
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.recipes.convert.proof import prove, prove_projector
from kvant.recipes.output import remove
from kvant.runtime.converter import environment, pins, process

NATIVE, UPSTREAM = "native", "upstream"
Way = Literal["auto", "native", "upstream"]
"""Who converts a directory: kvant's own families, upstream's converter, or the first that knows it."""

KINDS: Mapping[str, str] = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0"}
"""Types of matrices as upstream's converter calls them."""

WORDPIECE = "default"
"""Pre-tokenizer of WordPiece vocabularies: llama.cpp asks none of them for it (`llama-vocab.cpp`, WPM)."""

SLACK = 16
"""How many times the weights' bytes a file may take: four bits as floats are eight times as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What was made.

    Attributes:
        model: What the file holds; its path is the directory.
        file: The file, in a directory that goes away with the work.
        remarks: What was left out or done otherwise than it looks, and who converted.
    """

    model: Model
    file: Path
    remarks: tuple[str, ...]


def way_of(directory: Path, asked: Way = "auto") -> Literal["native", "upstream"]:
    """Return who converts a directory: kvant where it has a family, upstream's converter where that knows the class.

    Raises:
        FormatError: There is no config.json that can be read.
    """
    if asked != "auto":
        return asked
    config = read_json(directory / "config.json")
    names = config.get("architectures")
    if isinstance(names, list) and names and names[0] in BY_CLASS:
        return "native"
    return "upstream" if upstream_class(config) in TEXT else "native"


def is_upstreams(path: Path) -> bool:
    """Whether a path is a model's directory that upstream's converter alone makes a GGUF of."""
    try:
        return (path / "config.json").is_file() and way_of(path) == "upstream"
    except FormatError:  # its reader says what is wrong
        return False


def ready(
    subject: Path,
    *,
    agreed: bool,
    what: str = "converting it",
    words: str = "--converter upstream ",
    instead: str = "",
    progress: Progress = SILENT,
) -> environment.Converter:
    """Return the converter; it is installed first where that is agreed to.

    Args:
        subject: The model.
        agreed: Whether it may be installed.
        what: What needs it, for the message.
        words: Options of the command that agrees.
        instead: What can be done without it.
        progress: Told of its installation.

    Raises:
        ConverterMissingError: It is not there, and nobody agreed.
        MissingDependencyError: It cannot be installed, or a variable names none.
    """
    found = environment.find()
    if found is not None:
        return found
    if agreed or environment.is_agreed():
        return environment.make(progress=progress)
    raise environment.missing(subject, f"{what} needs {pins.TITLE}", words, instead)


@contextmanager
def converted(
    checked: Checked, beside: Path, kind: BlockType, converter: environment.Converter, *, mmproj: bool = False,
    threads: int = 0, progress: Progress = SILENT,
) -> Iterator[Converted]:  # fmt: skip
    """Convert into a directory beside an output, which is gone when the block ends.

    Args:
        checked: The model's directory.
        beside: The output that is meant.
        kind: Type of the matrices.
        converter: What converts.
        mmproj: Convert the model's eyes and ears, not its language model.
        threads: Threads of its products.
        progress: Told of the bytes written and looked at.

    Raises:
        EngineError: The converter fails, or llama.cpp does not open what it makes.
        UnsupportedModelError: The tokenizer is one that nobody knows.
        FormatError, ValueRangeError: What it makes is damaged.
    """
    pre, why = pretokenizer(checked.directory)
    scratch = partial_path(beside.with_name(f"{beside.name}.upstream"))  # its own writer has the plain name
    remove(scratch)
    try:
        (scratch / "made").mkdir(parents=True)
        task = process.Task(
            subject=checked.directory, directory=lay_out(checked, scratch / "source"), kind=KINDS[kind.name],
            out=scratch / "made" / "model.gguf", pre=pre, no_pre=why, threads=threads,
            expected_bytes=kind.row_bytes(kind.block_length) * checked.n_weights // kind.block_length,
            max_bytes=SLACK * checked.tensor_bytes + (1 << 30), options=("--mmproj",) if mmproj else (),
        )  # fmt: skip
        answer = process.run(converter, task, progress=progress)
        said = (*checked.remarks, *_said(checked, answer, converter.title)) if not mmproj else ()
        what = "The projector is converted" if mmproj else "Converted"
        proven = prove_projector if mmproj else prove
        model, remarks = proven(task.out, checked.directory, program=converter.title, progress=progress)
        yield Converted(model=model, file=task.out, remarks=(f"{what} by {converter.title}.", *said, *remarks))
    finally:
        remove(scratch)


def keep(made: Converted, out: Path) -> None:
    """Give the file its name."""
    with disk_errors(out), made.file.open("rb+") as file:
        os.fsync(file.fileno())
    commit_file(made.file, out)


def pretokenizer(directory: Path) -> tuple[str, str]:
    """Return the engine's name of a tokenizer's way to cut text, by what it does; or why there is none.

    Returns:
        The name, and the reason; one of them is empty.
    """
    tokenizer = read_object(directory, "tokenizer.json")
    model = tokenizer.get("model")
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        return WORDPIECE, ""
    if not is_byte_level(tokenizer):
        return "", "it is no byte-level BPE in a tokenizer.json"
    config, family = read_object(directory, "tokenizer_config.json"), read_object(directory, "config.json")
    cleans = config.get("clean_up_tokenization_spaces") is True
    try:
        return identify(tokenizer, cleans_spaces=cleans, family=family.get("model_type")).name, ""
    except (UnsupportedModelError, FormatError) as error:
        return "", str(error)


def _said(checked: Checked, answer: process.Answer, title: str) -> Iterator[str]:
    if answer.pre and answer.pre != WORDPIECE:  # the engine asks no WordPiece vocabulary for one
        yield (
            f"The vocabulary is none of those that {title} knows by hash: its pre-tokenizer is {answer.pre}, by "
            f"what tokenizer.json does."
        )
    if checked.architecture in PROJECTORS or _outer(checked.config) in PROJECTORS:
        yield "The file is the language model: eyes and ears are in a file of their own, the projector."


def _outer(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""
