"""Commands that kvant and its documents tell people to type exist, and have the options that they are given."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import COMMANDS, options_of, parsed

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
)
COMMAND = re.compile(r"(?<![\w./@'-])kvant ([a-z]+)\b([^\n`;&|]*)")
ENDS = re.compile(r"[,.:)]\s|\.$|\s(?:[|>&#(]|and|or|to|in|of|for)\s|\)$")
"""Where prose goes on after a command."""
OTHERS = {
    "mlx_lm.fuse": {"--model", "--adapter-path", "--save-path"},
    "mlx_lm.convert": {"--q-bits", "--q-group-size", "--q-mode", "--quant-predicate"},
    "the exporters": {"--config", "--ep", "--runtime"},
    "llama-export-lora": {"--lora"},
    "nvidia-smi": {"--query-gpu"},
    "pip": {
        "--force-reinstall",
        "--extra-index-url",
        "--hash",
        "--find-links",
        "--index-url",
        "--no-binary",
        "--no-deps",
        "--no-index",
        "--no-input",
        "--require-hashes",
        "--retries",
    },
    "uv": {"--python", "--seed"},
    "upstream's converter": {"--outfile", "--outtype"},
    "kvant itself": {"--version"},
    "the beginnings of names": {"--output", "--token"},
}
"""Options that are no command's of kvant."""
OPTION = re.compile(r"(?<![\w/-])--[a-z][a-z-]+\b")


@dataclass(frozen=True)
class Said:
    """A text for people, and where it stands."""

    place: str
    text: str


def told_in_code(path: Path) -> Iterator[Said]:
    """Every string of a module; what is put into it reads X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        if text and isinstance(node, ast.expr):
            yield Said(f"{path.relative_to(ROOT)}:{node.lineno}", text)


def told() -> Iterator[Said]:
    for path in SOURCES:
        yield from told_in_code(path)
    for page in PAGES:
        yield Said(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8").replace("\\\n", " "))


def mentions() -> Iterator[tuple[str, str, str]]:
    """Yield place, command and the words after it, for every mention of one."""
    for said in told():
        for match in COMMAND.finditer(said.text):
            if match[1] in COMMANDS:
                yield said.place, match[1], ENDS.split(match[2])[0]


def test_there_are_mentions_to_look_at() -> None:
    found = list(mentions())
    assert {command for _, command, _ in found} == set(COMMANDS)
    assert sum("--" in rest for _, _, rest in found) > 100


def test_options_of_commands_that_are_told_exist() -> None:
    wrong = [
        (place, f"kvant {command} {word}")
        for place, command, rest in mentions()
        for word in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", rest)
        if word not in options_of(command)
    ]
    assert not wrong


def test_commands_in_code_marks_exist() -> None:
    wrong = [
        (said.place, match[0])
        for said in told()
        for match in re.finditer(r"`kvant ([a-z]+)\b[^`\n]*`", said.text)
        if match[1] not in COMMANDS
    ]
    assert not wrong


def test_options_that_are_named_exist() -> None:
    every = set().union(*map(options_of, COMMANDS), *OTHERS.values())
    said = [one for path in SOURCES for one in told_in_code(path)]
    wrong = [(one.place, option) for one in said for option in OPTION.findall(one.text) if option not in every]
    assert not wrong


def whole() -> Iterator[tuple[str, str]]:
    """Yield every command line that stands alone: in examples of commands, and in blocks of documents."""
    for name, command in COMMANDS.items():
        for line in re.findall(r"^\s*(?:.*[|&] )?(kvant [^\n]*)", command.help.partition("Examples:")[2], re.MULTILINE):
            yield f"kvant {name}", line
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:\$ |  )(?:.*[|&] )?(kvant [a-z][^\n]*)", text, re.MULTILINE):
            yield str(page.relative_to(ROOT)), line


WHOLE = sorted({(place, line.strip()) for place, line in whole()})


@pytest.mark.parametrize("line", [line for _, line in WHOLE], ids=[place for place, _ in WHOLE])
def test_a_command_line_that_stands_alone_is_taken(line: str) -> None:
    line = re.sub(r"\s(?:#|>|>>|\|\||&&|\||2>|&)(?:\s.*|$)", "", f"{line} ").strip()
    for part in line.split(" && "):
        words = shlex.split(part)
        if words[0] == "kvant":
            parsed(words)
