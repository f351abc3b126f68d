"""The page's Markdown over CommonMark's examples, which npm installs (CC BY-SA 4.0, so they are not kept here)."""

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import kvant.serve

ROOT = Path(__file__).resolve().parents[3]
SPEC = ROOT / "build" / "javascript" / "node_modules" / "commonmark-spec"
MODULES = Path(kvant.serve.__file__).parent / "page"
CLAIMED = {
    "Backslash escapes", "Precedence", "Thematic breaks", "ATX headings", "Fenced code blocks", "Paragraphs",
    "Blank lines", "Block quotes", "List items", "Lists", "Inlines", "Code spans", "Emphasis and strong emphasis",
    "Hard line breaks", "Soft line breaks", "Textual content",
}  # fmt: skip
STATED = re.compile(r"(\d+)\s+of\s+the\s+(\d+)\s+examples")


@pytest.mark.skipif(shutil.which("node") is None or not SPEC.is_dir(), reason="needs node, and npm for the examples")
def test_as_many_examples_pass_as_the_documents_say(tmp_path: Path) -> None:
    for name in ("markdown.js", "dom.js"):
        shutil.copy(MODULES / name, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    command = ["node", str(Path(__file__).parent / "commonmark.mjs"), str(tmp_path), str(SPEC)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    examples = [example for example in json.loads(done.stdout) if example["section"] in CLAIMED]
    assert {example["section"] for example in examples} == CLAIMED
    passing = Counter(example["section"] for example in examples if example["passes"])
    stated = STATED.search((ROOT / "docs" / "how-to" / "web-page.md").read_text(encoding="utf-8"))
    assert stated, "docs/how-to/web-page.md states the share"
    assert (passing.total(), len(examples)) == tuple(map(int, stated.groups())), dict(passing)
