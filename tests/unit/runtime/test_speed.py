from pathlib import Path

import pytest

from kvant.runtime import speed


def package(root: Path, name: str, energy: int, span: int = 1_000_000) -> Path:
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "energy_uj").write_text(f"{energy}\n")
    (directory / "max_energy_range_uj").write_text(f"{span}\n")
    return directory


def test_energy_of_all_packages_in_joules(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 500_000), package(tmp_path, "intel-rapl:1", 0)
    package(tmp_path, "intel-rapl:0:0", 999_999)  # a part of package 0, already counted there
    read, reason = speed.energy_counter(tmp_path)
    assert reason is None
    before = read()
    (first / "energy_uj").write_text("700000")
    (second / "energy_uj").write_text("100000")
    assert read() - before == pytest.approx(0.3)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    directory = package(tmp_path, "intel-rapl:0", 900_000)
    read, _ = speed.energy_counter(tmp_path)
    before = read()
    (directory / "energy_uj").write_text("100000")
    assert read() - before == pytest.approx(0.2)


def test_no_counter_and_a_forbidden_one_give_their_reason(tmp_path: Path) -> None:
    assert "no RAPL energy counter" in str(speed.energy_counter(tmp_path / "absent")[1])
    directory = package(tmp_path, "intel-rapl:0", 1)
    (directory / "energy_uj").unlink()
    (directory / "energy_uj").mkdir()  # reading a directory fails for root, too
    assert "root only" in str(speed.energy_counter(tmp_path)[1])


def test_peak_is_at_least_what_is_used_now() -> None:
    assert speed.peak_rss_bytes() >= speed.rss_bytes() > 1_000_000


def test_without_proc_the_system_call_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "STATUS", tmp_path / "absent")
    assert speed.peak_rss_bytes() > 1_000_000
