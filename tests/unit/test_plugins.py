import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvant.errors import KvantError
from kvant.plugins import Registry

Offer = Callable[[str, str], None]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Install a distribution with entry points, as files on `sys.path`."""

    def install(name: str, entries: str) -> None:
        info = tmp_path / name / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[kvant.things]\n{entries}\n")
        monkeypatch.syspath_prepend(info.parent)

    return install


def test_offers_are_loaded_when_asked_for(offer: Offer, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("kvant_thing_a", "kvant_thing_b"):
        (tmp_path / "one" / f"{name}.py").write_text("THING = 7\n")
    (tmp_path / "one" / "kvant_thing_b.py").write_text("THING = 8\n")
    offer("one", "b = kvant_thing_b:THING\na = kvant_thing_a:THING")
    things = Registry[int]("kvant.things", "things")
    assert list(things.names) == ["a", "b"]
    assert not {"kvant_thing_a", "kvant_thing_b"} & set(sys.modules)
    assert things.get("a") == 7
    assert "kvant_thing_b" not in sys.modules
    assert list(things) == [7, 8]
    with pytest.raises(LookupError):
        things.get("c")


def test_what_is_found_is_kept_until_it_looks_again(offer: Offer) -> None:
    offer("one", "a = os:sep")
    things = Registry[str]("kvant.things", "things")
    assert list(things.names) == ["a"]
    offer("two", "b = os:linesep")
    assert "b" not in things.names
    things.look_again()
    assert list(things.names) == ["a", "b"]


def test_an_installation_that_offers_none_is_said() -> None:
    with pytest.raises(KvantError, match=r"its installation knows no things .*Reinstall"):
        _ = Registry[str]("kvant.no-such-things", "things").names


def test_one_name_from_two_distributions_is_refused(offer: Offer) -> None:
    offer("one", "a = os:sep")
    offer("two", "a = os:linesep")
    with pytest.raises(KvantError, match=r"two \(os:linesep\) and one \(os:sep\) both offer 'a'. Uninstall one"):
        _ = Registry[str]("kvant.things", "things").names


@pytest.mark.parametrize("where", ["no_such_module:THING", "os:no_such_thing"])
def test_an_offer_that_cannot_be_loaded_says_whose_it_is(offer: Offer, where: str) -> None:
    offer("one", f"a = {where}")
    with pytest.raises(KvantError, match=r"a of one .* cannot be loaded"):
        Registry[str]("kvant.things", "things").get("a")
