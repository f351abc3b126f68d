"""Artifacts put in their places: what has the name is replaced when that was asked for, and nothing beside it is."""

import sys
from pathlib import Path

import pytest

from kvant.errors import KvantError, OutputExistsError
from kvant.recipes.output import check_place, place, put_directory


def directory(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "weights").write_text(text)
    return path


def test_a_directory_is_replaced_and_its_neighbours_stay(tmp_path: Path) -> None:
    out, neighbour = directory(tmp_path / "m", "before"), directory(tmp_path / "m.old", "of someone else")
    put_directory(directory(tmp_path / "m.partial", "after"), out)
    assert (out / "weights").read_text() == "after"
    assert (neighbour / "weights").read_text() == "of someone else"
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.old"}


def test_a_file_gives_way_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("before")
    put_directory(directory(tmp_path / "m.partial", "after"), tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "weights").read_text() == "after"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_gives_way_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    elsewhere = directory(tmp_path / "elsewhere", "before")
    (tmp_path / "m").symlink_to(elsewhere)
    put_directory(directory(tmp_path / "m.partial", "after"), tmp_path / "m")
    assert (elsewhere / "weights").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "m"}
    assert not (tmp_path / "m").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_takes_no_more_is_named_in_one_line(tmp_path: Path) -> None:
    import resource

    made = directory(tmp_path / "cached", "weights")
    (made / "more").write_text("more")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(KvantError, match=r"too large for its file system\. Split it or write elsewhere\.$"):
            place(made, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["cached"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_does_not_give_way_to_a_file(tmp_path: Path, overwrite: bool) -> None:
    out = directory(tmp_path / "m", "before")
    (tmp_path / "made").write_text("after")
    with pytest.raises(OutputExistsError, match="is a directory, and a file is to be written"):
        check_place(tmp_path / "made", out, overwrite=overwrite)
    assert (out / "weights").read_text() == "before"


def test_a_directory_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    made, out = directory(tmp_path / "cached", "after"), directory(tmp_path / "m", "before")
    assert check_place(made, out, overwrite=True)
    (out / "thesis.txt").write_text("of a year")
    with pytest.raises(OutputExistsError, match=r"m: holds thesis\.txt, which would be lost"):
        check_place(made, out, overwrite=True)


def test_what_is_there_already_stays_with_all_beside_it(tmp_path: Path) -> None:
    made, out = directory(tmp_path / "cached", "same"), directory(tmp_path / "m", "same")
    (out / "notes.txt").write_text("mine")
    assert not check_place(made, out, overwrite=False)
