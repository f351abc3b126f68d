"""The licence policy: what passes, what is asked about, what never passes."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvant.cli.main import app
from kvant.errors import LicenceError
from kvant.hub.licences import check_licence, policy_path, read_policy


@pytest.mark.parametrize("name", ["apache-2.0", "MIT", "Apache-2.0 ", "gpl-3.0", "cc-by-4.0"])
def test_open_licences_pass(name: str) -> None:
    assert check_licence(name, "x") == name.strip().lower()


@pytest.mark.parametrize("name", ["llama3.1", "gemma", "cc-by-nc-4.0", "qwen-research"])
def test_others_are_asked_about_and_can_be_accepted(name: str) -> None:
    with pytest.raises(LicenceError, match=f"x: its licence is {name}, .*--accept-licence {name}"):
        check_licence(name, "x")
    assert check_licence(name, "x", accepted=["mit", name.upper()]) == name


@pytest.mark.parametrize("name", ["", "other", "unknown"])
def test_no_licence_is_asked_about(name: str) -> None:
    with pytest.raises(LicenceError, match="--accept-licence unknown"):
        check_licence(name, "x")
    assert check_licence(name, "x", accepted=["unknown"]) == "unknown"


def test_gated_is_asked_about() -> None:
    with pytest.raises(LicenceError, match="agreement"):
        check_licence("mit", "x", is_gated=True)
    assert check_licence("mit", "x", is_gated=True, accepted=["mit"]) == "mit"


def test_a_policy_file() -> None:
    policy_path().write_text("allow: [MIT, llama3.1]\ndeny: [gpl-3.0]\nunknown: refuse\n")
    assert check_licence("llama3.1", "x") == "llama3.1"
    with pytest.raises(LicenceError, match="not on the allow-list"):
        check_licence("apache-2.0", "x")
    for denied in ("gpl-3.0", ""):
        with pytest.raises(LicenceError, match="policy denies"):
            check_licence(denied, "x", accepted=["gpl-3.0", "unknown"])


def test_the_environment_lists_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVANT_LICENCES", "MIT, bsd-3-clause")
    assert read_policy().allow == {"mit", "bsd-3-clause"}
    monkeypatch.setenv("KVANT_LICENCES", "")
    with pytest.raises(LicenceError):
        check_licence("mit", "x")


@pytest.mark.parametrize(
    "text",
    ["allow: mit", "permit: [mit]", "[", "- a", "!!python/object/apply:os.system [id]", "unknown: maybe", "[" * 5000]
)  # fmt: skip
def test_a_policy_that_cannot_be_read_allows_nothing(text: str) -> None:
    policy_path().write_text(text)
    with pytest.raises(LicenceError, match="is not a licence policy"):
        check_licence("mit", "x")


def test_optimize_is_gated_by_what_the_model_says(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny / "tiny", model)
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: llama3.2\n---\n")
    asked = ["optimize", str(model), "-o", str(tmp_path / "out"), "--max-size", "1B"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 1
    assert "its licence is llama3.2, which is not on the allow-list" in refused.stderr
    accepted = CliRunner().invoke(app, [*asked, "--accept-licence", "llama3.2"])
    assert "licence" not in accepted.stderr  # the budget is what it fails for now
    (model / "README.md").unlink()
    assert "licence" not in CliRunner().invoke(app, asked).stderr  # one's own model names none
    policy_path().write_text("unknown: refuse")
    assert "the policy denies" in CliRunner().invoke(app, asked).stderr
