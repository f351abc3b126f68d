"""A store on a read-only or full disk, its index right, broken or gone: read as it is, and what cannot be says why."""

import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvant.hub.bundle  # imported now, all three: `nobody` may not look into everybody's installation
import kvant.hub.check
import kvant.hub.collect  # noqa: F401 - as above
from kvant.errors import KvantError, StoreReadOnlyError
from kvant.hub.store import Store
from store_files import family

NOBODY = 65534


@pytest.fixture
def root() -> Iterator[Path]:
    """A store with `m:one`, whole, and `m:two`, in parts, where every user may look."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    store = Store.open(top / "store")
    for number in ("one", "two"):
        store.import_file(family(top / f"{number}.gguf", number), f"m:{number}")
    yield store.disk.root
    shutil.rmtree(top)


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Let nobody but its owner write there, and be somebody else for root may always write."""
    directories = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for path in directories:
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        for path in directories:
            path.chmod(0o755)


@contextlib.contextmanager
def full(_: Path) -> Iterator[None]:
    """Let no file grow in this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leave(_: Path) -> None:
    """Leave the index as it is."""


def lose(root: Path) -> None:
    for path in root.glob("index.sqlite*"):
        path.unlink()


def break_(root: Path) -> None:
    lose(root)
    (root / "index.sqlite").write_bytes(b"x" * 5000)


def forget(root: Path) -> None:
    """Let the index know less than the names do."""
    raw = (root / "index.sqlite").read_bytes()
    Store(Store.open(root).disk).copy("m:one", "m:three")
    lose(root)
    (root / "index.sqlite").write_bytes(raw)
    Store.open(root).remove("m:three")
    lose(root)
    (root / "index.sqlite").write_bytes(raw)


@pytest.mark.parametrize("unwritable", [read_only, full])
@pytest.mark.parametrize("index", [leave, lose, break_, forget])
def test_what_is_there_can_be_listed_found_and_checked(
    root: Path, unwritable: Callable[[Path], contextlib.AbstractContextManager[None]], index: Callable[[Path], None]
) -> None:
    index(root)
    with unwritable(root):
        store = Store.open(root)
        names = [model.name.tagged for model in store.list()]
        path = store.find("m:one").path
        in_parts = store.find("m:two", readable=False)
        check = store.fsck()

    assert names == ["m:one", "m:two"]
    assert path.read_bytes() == (root.parent / "one.gguf").read_bytes()
    assert in_parts.size_bytes == (root.parent / "two.gguf").stat().st_size
    assert (check.is_clean, check.models, check.is_read_only) == (True, 2, unwritable is read_only)
    assert Store.open(root).fsck().is_clean


def test_a_read_only_store_can_be_exported_and_says_why_it_cannot_be_changed(root: Path) -> None:
    out = Path(tempfile.mkdtemp())
    out.chmod(0o777)
    with read_only(root):
        store = Store.open(root)
        store.export(["m:one", "m:two"], out / "both.tar")
        for change in (
            lambda: store.find("m:two"),
            lambda: store.remove("m:one"),
            lambda: store.copy("m:one", "m:three"),
            lambda: store.import_file(root.parent / "one.gguf", "m:four"),
            lambda: store.fsck(repair=True),
            store.gc,
        ):
            with pytest.raises(
                StoreReadOnlyError, match=r"cannot be written to \(Permission denied\)\. Work as the user"
            ):
                change()

    assert [m.name.tagged for m in Store.open(out / "other").import_bundle(out / "both.tar")] == ["m:one", "m:two"]
    shutil.rmtree(out)


def test_a_full_disk_refuses_what_grows_and_lets_models_go(root: Path) -> None:
    big = family(root.parent / "big.gguf", "big", private=100_000)
    with full(root):
        store = Store.open(root)
        with pytest.raises(KvantError, match=r"(full|too large for its file system)\. "):
            store.import_file(big, "m:big")
        with pytest.raises(KvantError, match=r"(full|too large for its file system)\. "):
            store.copy("m:one", "m:three")
        store.remove("m:two")
        left = [model.name.tagged for model in store.list()]

    assert left == ["m:one"]
    again = Store.open(root)
    assert [model.name.tagged for model in again.list()] == left
    assert again.fsck().is_clean
    again.import_file(big, "m:big")
    assert again.find("m:big").path.read_bytes() == big.read_bytes()
