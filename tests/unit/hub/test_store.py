"""The store: what goes in comes out byte for byte, shared bytes are kept once, names mean what they say."""

import hashlib
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvant.errors import FormatError, ModelNameError, ModelNotFoundError, QuotaError, StoreError
from kvant.hub.manifest import Message, ModelSettings
from kvant.hub.store import Store
from store_files import family, noise, write_gguf


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def own_bytes(store: Store) -> int:
    """Bytes of the store without manifests and settings."""
    documents = {d for row in store.index.rows() for d in (row.manifest, row.config)}
    return sum(p.stat().st_size for p in store.disk.blobs.iterdir() if p.name not in documents)


def assert_clean(store: Store) -> None:
    check = store.fsck()
    assert (check.findings, check.lost, check.garbage_bytes) == ([], [], 0)
    assert not list(store.disk.tmp.iterdir())


def test_a_file_comes_out_as_it_went_in(store: Store, tmp_path: Path) -> None:
    file = family(tmp_path / "m.gguf", "a")

    made = store.import_file(file, "me/m:q4", ModelSettings(system="Be brief.", messages=[Message("user", "Hi")]))

    found = store.find("ME/m:Q4")  # case does not count
    assert found == made
    assert found.path == tmp_path / "store" / "models" / "me" / "m" / "q4.gguf"
    assert found.path.read_bytes() == file.read_bytes()
    assert (found.size_bytes, found.settings.system) == (file.stat().st_size, "Be brief.")
    assert [m.name.tagged for m in store.list()] == ["me/m:q4"]
    assert own_bytes(store) == file.stat().st_size
    assert_clean(store)


def test_bytes_that_variants_share_are_kept_once_until_both_are_used(store: Store, tmp_path: Path) -> None:
    first, second = family(tmp_path / "1.gguf", "first"), family(tmp_path / "2.gguf", "second")
    store.import_file(first, "m:one")

    store.import_file(second, "m:two")

    header = first.stat().st_size - 40_000 - 4_000 - 36 - 28
    assert own_bytes(store) - first.stat().st_size <= 4_000 + header
    assert not store.list()[1].path.exists()
    assert store.find("m:two").path.read_bytes() == second.read_bytes()  # put together when it is wanted
    assert own_bytes(store) == first.stat().st_size + second.stat().st_size
    assert_clean(store)
    done = store.gc(pack=True)
    assert len(done.packed) == 1
    assert done.freed_bytes >= 40_000
    for name, file in (("m:two", second), ("m:one", first)):
        assert store.find(name).path.read_bytes() == file.read_bytes()
    assert_clean(store)


def test_the_same_file_under_two_names_takes_no_room(store: Store, tmp_path: Path) -> None:
    file = family(tmp_path / "m.gguf", "a")
    one = store.import_file(file, "one")
    before = store.usage()

    two = store.import_file(file, "two")
    three = store.copy("one", "three")

    assert store.usage() == before
    assert one.digest == two.digest == three.digest
    assert store.find("two").path.samefile(one.path)
    store.remove("one")
    assert store.find("three").path.read_bytes() == file.read_bytes()
    assert_clean(store)


def test_a_file_put_together_for_one_name_is_there_for_its_others(store: Store, tmp_path: Path) -> None:
    store.import_file(family(tmp_path / "1.gguf", "first"), "m:one")
    store.import_file(family(tmp_path / "2.gguf", "second"), "m:two")
    second = store.copy("m:two", "second")
    assert not second.path.exists()

    store.find("m:two")

    assert second.path.exists()
    assert_clean(store)


def test_removing_a_model_keeps_what_others_need_of_its_file(store: Store, tmp_path: Path) -> None:
    store.import_file(family(tmp_path / "1.gguf", "first"), "m:one")
    second = family(tmp_path / "2.gguf", "second")
    store.import_file(second, "m:two")

    store.remove("m:one")

    assert [m.name.tagged for m in store.list()] == ["m:two"]
    assert own_bytes(store) < second.stat().st_size + 10
    assert store.find("m:two").path.read_bytes() == second.read_bytes()
    assert_clean(store)
    store.remove("m:two")
    assert store.usage() == 0
    assert not list(store.disk.models.iterdir())


def test_a_name_that_is_given_to_another_file_lets_go_of_the_first(store: Store, tmp_path: Path) -> None:
    second = family(tmp_path / "2.gguf", "second")
    store.import_file(family(tmp_path / "1.gguf", "first"), "m")

    store.import_file(second, "m")

    assert store.find("m").path.read_bytes() == second.read_bytes()
    assert own_bytes(store) == second.stat().st_size
    assert_clean(store)


def test_other_settings_need_no_second_copy_of_the_weights(store: Store, tmp_path: Path) -> None:
    base = store.import_file(family(tmp_path / "m.gguf", "a"), "m")

    made = store.set("assistant", ModelSettings(system="You help.", parameters={"temperature": 0.1}), base=base)

    assert made.digest != base.digest
    assert store.find("assistant").settings.parameters == {"temperature": 0.1}
    assert store.find("assistant").path.samefile(base.path)
    assert store.find("m").settings == base.settings
    assert_clean(store)


def test_all_shards_go_in_and_the_first_opens_the_model(store: Store, tmp_path: Path) -> None:
    from kvant.formats.gguf.reader import read_gguf

    paths = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for n, path in enumerate(paths, 1):
        write_gguf(path, {f"t{n}": noise(str(n), 4096)}, split=n)

    model = store.import_file(paths[1], "m:sharded")

    assert [p.name for p in sorted(model.path.parent.iterdir())] == [
        "sharded-00001-of-00002.gguf", "sharded-00002-of-00002.gguf",
    ]  # fmt: skip
    assert set(read_gguf(model.path).tensors) == {"t1", "t2"}
    assert model.size_bytes == sum(p.stat().st_size for p in paths)
    assert_clean(store)
    store.remove("m:sharded")
    assert store.usage() == 0


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 70), max_size=5),
    gap=st.sampled_from([b"\0", b"x"]),
    tail=st.sampled_from([b"", b"\0" * 7, b"tail", b"\0" * 40 + b"!"]),
)
def test_any_layout_is_put_together_again_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], gap: bytes, tail: bytes
) -> None:
    directory = tmp_path_factory.mktemp("any")
    store = Store.open(directory / "store")
    big = {"big": noise("big", 4000)}
    store.import_file(write_gguf(directory / "big.gguf", big), "base")
    tensors = big | {f"t{i}": noise(f"{i}{gap!r}", 4 * n) for i, n in enumerate(lengths)}
    file = write_gguf(directory / "m.gguf", tensors, gap=gap, tail=tail, note="other")

    model = store.import_file(file, "m")

    assert not model.path.exists()  # in parts
    assert store.find("m").path.read_bytes() == file.read_bytes()
    assert_clean(store)


def test_a_digest_in_a_name_is_honoured(store: Store, tmp_path: Path) -> None:
    digest = store.import_file(family(tmp_path / "m.gguf", "a"), "m").digest

    assert store.find(f"m@sha256:{digest}").digest == digest
    for what in (store.find, store.remove):
        with pytest.raises(ModelNotFoundError, match=f"has the digest sha256:{digest}"):
            what(f"m@sha256:{'0' * 64}")
    assert store.has("m")
    with pytest.raises(ModelNameError, match="cannot say its digest"):
        store.copy("m", f"n@sha256:{digest}")


def test_a_name_that_differs_only_in_case_is_refused(store: Store, tmp_path: Path) -> None:
    file = family(tmp_path / "m.gguf", "a")
    store.import_file(file, "Model:Q4")

    with pytest.raises(ModelNameError, match=r"differs only in case from Model:Q4\. Use that name"):
        store.import_file(file, "model:q4")
    assert store.find("model:q4").name.tagged == "Model:Q4"


def test_what_is_not_there_or_no_model_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^nothing: is not in the store\. `kvant list`"):
        store.find("nothing")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(5))
    with pytest.raises(FormatError):
        store.import_file(broken, "m")
    assert store.list() == []
    assert store.usage() == 0
    assert not list(store.disk.tmp.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_file_whose_name_is_no_text_is_imported(store: Store, tmp_path: Path) -> None:
    file = family(tmp_path / "m.gguf", "a").rename(tmp_path / "\udcff.gguf")

    assert store.import_file(file, "m").settings.source == str(tmp_path / "?.gguf")
    store.export(["m"], tmp_path / "\udcff.tar")
    assert store.import_bundle(tmp_path / "\udcff.tar", name="n")[0].digest == store.find("m").digest
    assert_clean(store)


def test_moving_takes_the_file_away_but_not_if_it_fails(store: Store, tmp_path: Path) -> None:
    file = family(tmp_path / "m.gguf", "a")
    raw = file.read_bytes()
    store.quota = 10
    with pytest.raises(QuotaError):
        store.import_file(file, "m", move=True)
    assert file.read_bytes() == raw
    store.quota = None

    model = store.import_file(file, "m", move=True)

    assert not file.exists()
    assert model.path.read_bytes() == raw
    assert_clean(store)


def test_the_quota_holds_and_names_sizes_and_remedy(store: Store, tmp_path: Path) -> None:
    store.import_file(family(tmp_path / "1.gguf", "first"), "m:one")
    store.quota = store.usage() + 20_000

    with pytest.raises(QuotaError, match=r"\d+ bytes more than the \d+ in the store .* quota of \d+\. Remove models"):
        store.import_file(write_gguf(tmp_path / "x.gguf", {"x": noise("x", 40_000)}), "x")
    store.import_file(family(tmp_path / "2.gguf", "second"), "m:two")  # the shared bytes are not counted twice
    with pytest.raises(QuotaError):
        store.find("m:two")
    assert Store.open(store.disk.root).quota == store.quota
    store.quota = None
    assert store.find("m:two").path.exists()
    assert_clean(store)


def test_stored_files_cannot_be_written_by_accident(store: Store, tmp_path: Path) -> None:
    model = store.import_file(family(tmp_path / "m.gguf", "a"), "m")

    assert not stat.S_IMODE(model.path.stat().st_mode) & 0o222


@pytest.mark.parametrize("damage", ["remove", "empty", "garbage", "older"])
def test_the_index_is_only_a_cache(store: Store, tmp_path: Path, damage: str) -> None:
    store.import_file(family(tmp_path / "1.gguf", "first"), "m:one")
    index = store.disk.index
    older = index.read_bytes()
    store.import_file(family(tmp_path / "2.gguf", "second"), "m:two")
    for path in store.disk.root.glob("index.sqlite*"):
        path.unlink()
    if damage != "remove":
        index.write_bytes({"empty": b"", "garbage": b"x" * 5000, "older": older}[damage])

    again = Store.open(store.disk.root)

    assert [m.name.tagged for m in again.list()] == ["m:one", "m:two"]
    again.remove("m:one")
    assert again.find("m:two").path.exists()
    assert_clean(again)


def test_a_change_that_was_cut_off_is_put_right_by_the_next(store: Store, tmp_path: Path) -> None:
    model = store.import_file(family(tmp_path / "m.gguf", "a"), "m")
    store.disk.journal.write_text("import m")
    model.path.unlink()
    (store.disk.tmp / "half").write_bytes(b"half")
    stray = store.disk.models / "gone" / "latest.gguf"
    stray.parent.mkdir()
    os.link(store.file(hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()) or Path(), stray)

    check = store.fsck()

    assert (check.interrupted, check.is_clean) == ("import m", True)
    assert model.path.exists()
    assert not stray.parent.exists()
    assert not list(store.disk.tmp.iterdir())


def test_another_kind_of_directory_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')

    with pytest.raises(StoreError, match="version"):
        Store.open(tmp_path)


_WORK = """
import sys
from pathlib import Path
from kvant.hub.store import Store
store, mine, files = Store.open(Path(sys.argv[1])), sys.argv[2], [Path(f) for f in sys.argv[3:]]
for turn in range(4):
    for number, file in enumerate(files):
        store.import_file(file, f"{mine}:{number}")
        store.import_file(file, f"both:{number}")
    store.gc(pack=turn % 2 == 0)
    for number, file in enumerate(files):
        assert store.find(f"{mine}:{number}").path.read_bytes() == file.read_bytes()
    store.remove(f"{mine}:0")
    assert all(m.name.model in ("a", "b", "both") for m in store.list())
"""


def test_two_processes_change_one_store_at_once(store: Store, tmp_path: Path) -> None:
    files = [str(family(tmp_path / f"{n}.gguf", str(n))) for n in range(3)]
    command = [sys.executable, "-c", _WORK, str(store.disk.root)]

    both = [subprocess.Popen([*command, mine, *files], stderr=subprocess.PIPE, text=True) for mine in ("a", "b")]

    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    names = {m.name.tagged for m in store.list()}
    assert names == {"a:1", "a:2", "b:1", "b:2", "both:0", "both:1", "both:2"}
    store.gc()
    assert_clean(store)


def test_threads_share_one_store_object(store: Store, tmp_path: Path) -> None:
    files = [family(tmp_path / f"{n}.gguf", str(n)) for n in range(4)]

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(lambda n: store.import_file(files[n], f"m:{n}"), range(4)))
        found = list(workers.map(lambda n: store.find(f"m:{n}").path.read_bytes(), range(4)))

    assert found == [file.read_bytes() for file in files]
    assert_clean(store)


def test_exporting_what_is_not_there_from_a_fresh_store_says_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^nosuch: is not in the store"):
        store.export(["nosuch"], tmp_path / "out.tar")


def test_exporting_makes_the_index_again_under_its_own_lock(store: Store, tmp_path: Path) -> None:
    store.import_file(family(tmp_path / "m.gguf", "a"), "m")
    for path in store.disk.root.glob("index.sqlite*"):
        path.unlink()

    Store.open(store.disk.root).export(["m"], tmp_path / "out.tar")

    assert (tmp_path / "out.tar").stat().st_size > 44_000


def test_a_change_within_a_change_is_a_defect_and_not_a_wait(store: Store) -> None:
    with store.ledger.changing("one thing"), pytest.raises(AssertionError, match="part of another"):  # noqa: SIM117
        with store.ledger.changing("another"):
            pass
    assert not store.disk.journal.exists()
