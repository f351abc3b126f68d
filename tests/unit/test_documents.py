from pathlib import Path

import pytest

from kvant.documents import read_document
from kvant.errors import FormatError, KvantError


def test_a_document_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"1234")
    assert read_document(path, "plan", 4) == b"1234"
    with pytest.raises(FormatError, match=r"plan\.json: more than 3 bytes is no plan\. Check the path\.$"):
        read_document(path, "plan", 3)
    for elsewhere in (tmp_path, tmp_path / "absent"):
        with pytest.raises(KvantError, match=r"\. Check the path\.$"):
            read_document(elsewhere, "plan", 4)
