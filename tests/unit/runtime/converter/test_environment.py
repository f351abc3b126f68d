"""The converter's environment: what is found, what is said before it is made, what is taken out of an archive."""

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from converter_files import use_converter, write_converter
from kvant.errors import ConverterMissingError, MissingDependencyError
from kvant.runtime.converter import environment, pins


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (environment.PYTHON, environment.SOURCE, environment.AGREED):
        monkeypatch.delenv(name, raising=False)


def archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            made.addfile(info, io.BytesIO(b"x"))
    return path


def test_there_is_none_at_first_and_what_it_takes_is_said(own_home: Path) -> None:
    assert environment.find() is None
    plan = environment.plan()
    assert pins.TORCH in plan
    assert pins.VERSION in plan
    assert str(own_home / "converter") in plan
    assert "GB in" in plan


@pytest.mark.heavy
def test_what_variables_name_is_not_installed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_converter(monkeypatch, write_converter(tmp_path / "llama.cpp"))
    found = environment.find()
    assert found is not None
    assert found.script.is_file()
    assert str(tmp_path / "llama.cpp") in found.title
    monkeypatch.delenv(environment.SOURCE)
    assert environment.find() is None
    assert pins.TORCH not in environment.plan()


def test_the_digest_is_that_of_the_converter_s_files(tmp_path: Path) -> None:
    found = environment.Converter(python=sys.executable, source=write_converter(tmp_path / "a"))
    before = found.digest
    other = environment.Converter(python="python", source=write_converter(tmp_path / "b"))
    assert other.digest == before
    (other.source / "conversion" / "base.py").write_text("x = 1\n")
    assert other.digest != before


def test_a_python_that_lacks_packages_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv(environment.PYTHON, str(bare))
    with pytest.raises(MissingDependencyError, match=r"lacks torch, .*Install there: torch=="):
        environment.find()
    monkeypatch.setenv(environment.PYTHON, str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="cannot be run"):
        environment.find()


def test_a_directory_without_the_converter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environment.SOURCE, str(tmp_path))
    with pytest.raises(MissingDependencyError, match="holds no conversion"):
        environment.find()


@pytest.mark.parametrize("word", ["yes", "1", "TRUE", " y "])
def test_scripts_agree_by_a_variable(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not environment.is_agreed()
    monkeypatch.setenv(environment.AGREED, word)
    assert environment.is_agreed()


def test_the_error_says_how_to_agree() -> None:
    error = environment.missing(Path("a b"), "converting it needs it")
    assert isinstance(error, ConverterMissingError)
    assert error.plan == environment.plan()
    assert "`kvant convert 'a b' --converter upstream --yes`" in str(error)
    assert f"{environment.AGREED}=yes" in str(error)


def test_only_the_converter_is_taken_out_of_the_archive(tmp_path: Path) -> None:
    inside = f"{pins.WITHIN}/"
    names = ["convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/a.py", "src/llama.cpp", "../../evil.py",
             "conversion/../../../evil.py"]  # fmt: skip
    environment.extract(archive(tmp_path / "a.tar.gz", [inside + name for name in names]), tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/a.py"}
    assert not list(tmp_path.rglob("evil.py"))


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"holds no convert_hf_to_gguf.py"):
        environment.extract(archive(tmp_path / "a.tar.gz", ["a/b"]), tmp_path / "out")
    (tmp_path / "b.tar.gz").write_bytes(b"\x1f\x8bxx")
    with pytest.raises(MissingDependencyError, match="is damaged"):
        environment.extract(tmp_path / "b.tar.gz", tmp_path / "out")


@pytest.mark.slow
def test_without_a_network_the_commands_are_said_and_nothing_counts_as_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_home: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(MissingDependencyError) as caught:
        environment.make()
    for command in ("python3 -m venv", "pip download -d", "tar xf llama_cpp", f"export {environment.PYTHON}="):
        assert command in str(caught.value)
    assert environment.find() is None
    assert not list((own_home / "converter").rglob("versions.txt"))
