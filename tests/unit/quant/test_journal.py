from pathlib import Path

import pytest

from kvant.quant.journal import Journal


def test_what_was_noted_last_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "work")
    assert journal.done() == 0
    journal.start()
    assert journal.done() == 0
    journal.note(3)
    journal.note(5)
    assert Journal(tmp_path / "j", "work").done() == 5
    assert Journal(tmp_path / "j", "other work").done() == 0
    journal.start()
    assert journal.done() == 0
    journal.remove()
    journal.remove()
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize(
    ("text", "done"), [("work\n3\n5", 3), ("work\n3\nx\n", 3), ("work", 0), ("", 0), ("work\n-1\n", 0)]
)
def test_a_line_cut_off_by_a_crash_does_not_count(tmp_path: Path, text: str, done: int) -> None:
    (tmp_path / "j").write_text(text)
    assert Journal(tmp_path / "j", "work").done() == done
