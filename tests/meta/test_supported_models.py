"""The how-to page names every class that kvant converts."""

from pathlib import Path

import pytest

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.registry import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "convert.md"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.classes[0])
def test_every_family_is_in_the_table(family: Family) -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for name in family.classes:
        assert any(f"`{name}`" in row and f"`{family.architecture}`" in row for row in rows), name
