"""Every code block in the documents runs, or says why not.

A block of `console` holds commands after `$ ` and may show their output; one of `python` is a program. A comment before
the block changes that: `<!-- not run: REASON -->`, or `<!-- run: slow -->` for `make test-all`. Blocks of one page run
in order in one directory, in which `models/smollm2-135m` is the reference model.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"(?:<!-- (?P<note>[^>]*?) -->\n)?```(?P<language>\w+)[^\n]*\n(?P<body>.*?)```", re.DOTALL)
RUNNABLE = {"console", "python", "bash", "sh"}
TIMEOUT_S = 600


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    body: str
    note: str

    @property
    def script(self) -> str:
        if self.language != "console":
            return self.body
        joined = self.body.replace("\\\n", " ")
        return "\n".join(line[2:] for line in joined.splitlines() if line.startswith("$ "))


def blocks(page: Path) -> Iterator[Block]:
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["language"] in RUNNABLE:
            yield Block(page, match["language"], match["body"], match["note"] or "")


def to_run(page: Path, *, slow: bool) -> list[Block]:
    found = [b for b in blocks(page) if not b.note.startswith("not run:")]
    return found if slow else [b for b in found if b.note != "run: slow"]


def run(page: Path, directory: Path, model: Path, *, slow: bool) -> None:
    (directory / "models").mkdir()
    (directory / "models" / "smollm2-135m").symlink_to(model)
    for block in to_run(page, slow=slow):
        if block.language == "python":
            command = [sys.executable, "-c", block.script]
        else:
            command = ["bash", "-ec", f'export PATH="{Path(sys.executable).parent}:$PATH"\n{block.script}']
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, f"{page.relative_to(ROOT)}:\n{block.script}\n{done.stdout}\n{done.stderr}"


def names(pages: list[Path]) -> list[str]:
    return [p.relative_to(ROOT).as_posix() for p in pages]


DAILY = [p for p in PAGES if to_run(p, slow=False)]
LONG = [p for p in PAGES if to_run(p, slow=True) != to_run(p, slow=False)]


@pytest.mark.model
@pytest.mark.parametrize("page", DAILY, ids=names(DAILY))
def test_blocks_run(page: Path, tmp_path: Path, reference_model: Path) -> None:
    run(page, tmp_path, reference_model, slow=False)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("page", LONG, ids=names(LONG))
def test_long_blocks_run(page: Path, tmp_path: Path, reference_model: Path) -> None:
    run(page, tmp_path, reference_model, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_a_block_that_does_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        assert not block.note.startswith("not run:") or len(block.note) > len("not run: ") + 10, block.body


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_inside_the_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
