"""A store that was damaged, and bundles and manifests that lie: everything is noticed, and nothing complete is lost."""

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvant.errors import FormatError, KvantError, ModelNameError, OutputExistsError, StoreError
from kvant.hub.manifest import read_manifest
from kvant.hub.store import Store, StoredModel
from store_files import family, write_gguf

BIG = 1 << 49


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with `m:one`, whole, and `m:two`, which shares most of its bytes and is in parts."""
    store = Store.open(tmp_path / "store")
    for number in ("one", "two"):
        store.import_file(family(tmp_path / f"{number}.gguf", number), f"m:{number}")
    return store


def overwrite(path: Path, raw: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(raw)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    overwrite(path, bytes(raw))


def kinds(store: Store, *, repair: bool = False) -> set[str]:
    return {finding.kind for finding in store.fsck(repair).findings}


def content(model: StoredModel) -> bytes:
    return model.path.read_bytes()


# A damaged store.


def test_a_flipped_bit_in_what_two_models_share_costs_only_that_object(store: Store, tmp_path: Path) -> None:
    flip(store.find("m:one").path, 1000)  # in the shared tensor

    check = store.fsck()
    assert not check.is_clean
    assert not store.disk.quarantine.exists()  # nothing is changed without --repair
    repaired = store.fsck(repair=True)

    assert sorted(repaired.lost) == [f"registry.kvant.local/library/m:{n}" for n in ("one", "two")]
    assert len(list(store.disk.quarantine.iterdir())) == 1
    with pytest.raises(StoreError, match=r"missing\. Import or pull"):
        store.find("m:two")
    store.import_file(tmp_path / "one.gguf", "m:one")  # brings the object back
    assert content(store.find("m:two")) == (tmp_path / "two.gguf").read_bytes()
    assert store.fsck().is_clean


def test_a_flipped_bit_in_what_one_model_has_alone_does_not_touch_the_other(store: Store, tmp_path: Path) -> None:
    path = store.find("m:one").path
    flip(path, path.stat().st_size - 1)

    check = store.fsck(repair=True)

    assert check.lost == ["registry.kvant.local/library/m:one"]
    assert content(store.find("m:two")) == (tmp_path / "two.gguf").read_bytes()


def test_a_whole_file_whose_parts_are_elsewhere_is_made_again(store: Store, tmp_path: Path) -> None:
    two = store.find("m:two")  # both are whole now
    flip(two.path, 1000)

    check = store.fsck(repair=True)

    assert check.is_clean
    assert content(store.find("m:two")) == (tmp_path / "two.gguf").read_bytes()
    assert store.fsck().findings == []


def test_a_truncated_object_is_noticed_when_it_is_used(store: Store) -> None:
    own = max(store.disk.blobs.iterdir(), key=lambda p: p.stat().st_size if p.stat().st_size < 10_000 else 0)
    assert own.stat().st_size == 4000
    overwrite(own, own.read_bytes()[:3999])

    with pytest.raises(StoreError, match="fsck"):
        store.find("m:two")
    assert not store.find("m:two", readable=False).path.exists()
    assert store.fsck(repair=True).lost == ["registry.kvant.local/library/m:two"]


def test_a_broken_manifest_costs_its_name_alone_and_gc_waits_for_the_repair(store: Store, tmp_path: Path) -> None:
    overwrite(store.disk.blob(store.find("m:one").digest), b"{")
    for path in store.disk.root.glob("index.sqlite*"):
        path.unlink()

    assert [m.name.tagged for m in store.list()] == ["m:two"]
    with pytest.raises(StoreError, match=r"m:one: is damaged\. Run: kvant fsck"):
        store.find("m:one")
    with pytest.raises(StoreError, match="nothing is removed"):
        store.gc()
    assert {"name", "object"} <= kinds(store, repair=True)
    store.import_file(tmp_path / "one.gguf", "m:one")
    assert store.fsck().is_clean
    assert content(store.find("m:two")) == (tmp_path / "two.gguf").read_bytes()


def test_lost_settings_do_not_cost_the_weights(store: Store, tmp_path: Path) -> None:
    overwrite(store.disk.blob(store.index.rows()[0].config), b"[]")

    assert "settings" in kinds(store, repair=True)

    model = store.find("m:one")
    assert model.settings.source is None
    assert content(model) == (tmp_path / "one.gguf").read_bytes()
    assert store.fsck().is_clean


@pytest.mark.parametrize(
    "name", ["a.json", "h/n/m/t/deep.json", "h/n/m/..json", "registry.kvant.local/library/x/y.json"]
)
@pytest.mark.parametrize("raw", [b"", b"[" * 100_000, b'{"mediaType":"x","digest":"../../x","size":1}'])
def test_references_that_are_none_are_put_away(store: Store, name: str, raw: bytes) -> None:
    path = store.disk.names / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)

    assert len(store.list()) == 2
    assert "name" in kinds(store, repair=True)
    assert not path.exists()
    assert store.fsck().is_clean


def test_strange_files_and_missing_links_are_put_right(store: Store, tmp_path: Path) -> None:
    (store.disk.blobs / "notes.txt").write_text("mine")
    link = store.find("m:one").path
    link.unlink()
    link.write_bytes(b"another file")

    assert kinds(store) == {"object", "link"}
    assert store.fsck(repair=True).is_clean
    assert content(store.find("m:one")) == (tmp_path / "one.gguf").read_bytes()
    assert (store.disk.quarantine).exists()


# Manifests that lie.


def manifest(**change: Any) -> bytes:
    digest = "sha256:" + "0" * 64
    good = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.kvant.model.v1+json",
        "config": {"mediaType": "x", "digest": digest, "size": 2},
        "layers": [{"mediaType": "x", "digest": digest, "size": 5}],
        "annotations": {"dev.kvant.files": json.dumps([{"sha256": "0" * 64, "size": 5, "layers": 1}])},
    }
    return json.dumps(good | change).encode()


def files(*entries: tuple[str, int, int]) -> dict[str, str]:
    return {"dev.kvant.files": json.dumps([{"sha256": s, "size": n, "layers": c} for s, n, c in entries])}


def layer(digest: str = "sha256:" + "0" * 64, size: int = 5, zeros: str | None = None) -> dict[str, Any]:
    annotations = {} if zeros is None else {"dev.kvant.zeros": zeros}
    return {"mediaType": "x", "digest": digest, "size": size, "annotations": annotations}


def test_a_manifest_as_above_is_read() -> None:
    assert read_manifest(manifest(), "m").layers[0].size == 5


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{}", b"[" * 500_000, b"\xff", b'{"schemaVersion": 2}',
        manifest(schemaVersion=1), manifest(mediaType="application/json"), manifest(artifactType="x"),
        manifest(config={"mediaType": "x", "digest": "sha256:../../../etc/passwd", "size": 1}),
        manifest(config={"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": BIG}),
        manifest(layers=[]), manifest(layers=[layer(digest="md5:" + "0" * 64)]), manifest(layers=[layer(size=-5)]),
        manifest(layers=[layer(size=BIG << 20)]), manifest(layers=[layer(size=4)]), manifest(layers=[layer(), layer()]),
        manifest(layers=[layer(size=4, zeros="1"), layer(size=0)]),
        *(manifest(layers=[layer(size=4, zeros=z)]) for z in ("-1", "2", "x", "", "9" * 20, "١", "1_0", " 1")),
        manifest(annotations={}), manifest(annotations={"dev.kvant.files": "[]"}),
        manifest(annotations={"dev.kvant.files": "[" * 100_000}),
        manifest(annotations=files(("0" * 64, 5, 0), ("0" * 64, 5, 1))),
        manifest(annotations=files(("0" * 64, 5, -1), ("0" * 64, 5, 2))),
        manifest(annotations=files(("../" + "0" * 61, 5, 1))), manifest(annotations=files(("0" * 64, 5, 10**9))),
    ],
)  # fmt: skip
def test_a_manifest_that_lies_is_refused(raw: bytes) -> None:
    with pytest.raises(StoreError, match=r"^m: .*\. "):
        read_manifest(raw, "m")


# Bundles.


@pytest.fixture
def bundle(store: Store, tmp_path: Path) -> Path:
    store.export(["m:one", "m:two"], tmp_path / "bundle.tar")
    return tmp_path / "bundle.tar"


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "other")


def assert_empty(store: Store) -> None:
    assert store.list() == []
    assert store.usage() == 0
    assert not list(store.disk.tmp.iterdir())
    assert store.fsck().is_clean


def test_a_bundle_brings_models_to_another_machine(bundle: Path, other: Store, tmp_path: Path) -> None:
    found = other.import_bundle(bundle)

    assert [m.name.tagged for m in found] == ["m:one", "m:two"]
    for number in ("one", "two"):
        assert content(other.find(f"m:{number}")) == (tmp_path / f"{number}.gguf").read_bytes()
    assert bundle.stat().st_size < 2 * 44_000  # what they share is in it once
    assert other.fsck().is_clean


def test_a_bundle_is_an_oci_layout_that_other_tools_read(bundle: Path) -> None:
    with tarfile.open(bundle) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]

    assert json.loads(members["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(members["index.json"])
    wanted = {"oci-layout", "index.json"}
    for entry in index["manifests"]:
        raw = members["blobs/sha256/" + entry["digest"].removeprefix("sha256:")]
        document = json.loads(raw)
        assert len(raw) == entry["size"]
        for blob in (entry, document["config"], *document["layers"]):
            path = "blobs/" + blob["digest"].replace(":", "/")
            assert hashlib.sha256(members[path]).hexdigest() == blob["digest"].removeprefix("sha256:")
            wanted.add(path)
    assert wanted == members.keys()


def test_names_that_are_taken_stay_unless_overwritten(bundle: Path, other: Store, tmp_path: Path) -> None:
    other.import_file(write_gguf(tmp_path / "x.gguf", {"x": b"1234"}), "m:two")

    with pytest.raises(OutputExistsError, match=r"^m:two: is another model"):
        other.import_bundle(bundle)
    assert [m.name.tagged for m in other.list()] == ["m:two"]
    other.import_bundle(bundle, overwrite=True)
    assert content(other.find("m:two")) == (tmp_path / "two.gguf").read_bytes()
    with pytest.raises(ModelNameError, match="holds 2 models"):
        other.import_bundle(bundle, name="n")
    assert other.fsck().is_clean


def test_every_cut_and_every_flipped_bit_is_noticed(bundle: Path, other: Store, tmp_path: Path) -> None:
    raw = bundle.read_bytes()
    bad = tmp_path / "bad.tar"
    for end in (0, 1, 511, 512, 1023, 1024, 5000, len(raw) // 2, len(raw) - 10240 - 1):
        bad.write_bytes(raw[:end])
        with pytest.raises(KvantError):
            other.import_bundle(bad)
    with tarfile.open(bundle) as tar:
        spots = [m.offset_data + m.size // 2 for m in tar]
    for spot in [*spots[:6], *spots[-3:]]:
        bad.write_bytes(raw[:spot] + bytes([raw[spot] ^ 1]) + raw[spot + 1 :])
        with pytest.raises(KvantError):
            other.import_bundle(bad)
    assert_empty(other)


Change = Callable[[tarfile.TarInfo, bytes], list[tuple[tarfile.TarInfo, bytes]]]


def rewritten(bundle: Path, target: Path, change: Change, kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(bundle) as source, tarfile.open(target, "w", format=kind) as out:
        for member in source:
            raw = source.extractfile(member).read()  # type: ignore[union-attr]
            for info, content in change(member, raw):
                out.addfile(info, io.BytesIO(content))
    return target


def extra(**fields: Any) -> Change:
    def change(member: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if member.name != "index.json":
            return [(member, raw)]
        info = tarfile.TarInfo("x")
        for key, value in fields.items():
            setattr(info, key, value)
        return [(info, b"x" * info.size), (member, raw)]

    return change


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../../escape", "size": 1}, {"name": "/etc/escape", "size": 1}, {"name": "blobs/../../x", "size": 1},
        {"name": "blobs/sha256/" + "0" * 64, "size": 1}, {"name": "x" * 200, "size": 1}, {"name": "BLOBS", "size": 1},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.LNKTYPE, "linkname": "oci-layout"},
        {"type": tarfile.FIFOTYPE}, {"type": tarfile.CHRTYPE}, {"type": tarfile.GNUTYPE_SPARSE, "size": 512},
        {"type": tarfile.XHDTYPE, "size": 512}, {"type": tarfile.XGLTYPE, "size": 512},
    ],
)  # fmt: skip
def test_what_a_bundle_does_not_hold_is_refused(
    bundle: Path, other: Store, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(FormatError):
        other.import_bundle(rewritten(bundle, tmp_path / "bad.tar", extra(**fields)))
    assert_empty(other)
    assert not (tmp_path / "escape").exists()


def with_index(edit: Callable[[Any], object]) -> Change:
    def change(member: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if member.name == "index.json":
            document = json.loads(raw)
            edit(document)
            raw = json.dumps(document).encode()
            member.size = len(raw)
        return [(member, raw)]

    return change


def rename(index: Any, *names: str) -> None:
    for entry, name in zip(index["manifests"], names, strict=False):
        entry["annotations"]["org.opencontainers.image.ref.name"] = name


@pytest.mark.parametrize(
    "edit",
    [
        lambda i: i["manifests"].clear(),
        lambda i: i["manifests"].extend([i["manifests"][0]] * 5000),
        lambda i: i["manifests"].pop(),  # its objects were not announced then
        lambda i: i["manifests"][0].update(size=BIG),
        lambda i: i["manifests"][0].update(digest="sha256:../../etc/passwd"),
        lambda i: i["manifests"][0].pop("annotations"),
        lambda i: rename(i, "../../x"),
        lambda i: rename(i, "x", "X"),
        lambda i: rename(i, "x@sha256:" + "0" * 64),
    ],
)
def test_an_index_that_lies_is_refused(
    bundle: Path, other: Store, tmp_path: Path, edit: Callable[[Any], object]
) -> None:
    with pytest.raises(KvantError):
        other.import_bundle(rewritten(bundle, tmp_path / "bad.tar", with_index(edit)))
    assert_empty(other)


def forged(tmp_path: Path, layers: list[tuple[bytes, int]], sha256: str, size: int, *, count: int = 1) -> Path:
    """A bundle whose parts agree with their digests but not with the file that they are said to make."""
    objects = {hashlib.sha256(raw).hexdigest(): raw for raw, _ in layers}
    config = b"{}"
    document = manifest(
        config={"mediaType": "x", "digest": "sha256:" + hashlib.sha256(config).hexdigest(), "size": 2},
        layers=[
            layer(digest="sha256:" + hashlib.sha256(raw).hexdigest(), size=len(raw), zeros=str(zeros))
            for raw, zeros in layers
        ] * count,
        annotations=files((sha256, size, len(layers) * count)),
    )  # fmt: skip
    digest = hashlib.sha256(document).hexdigest()
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{digest}", "size": len(document),
        "annotations": {"org.opencontainers.image.ref.name": "forged"},
    }  # fmt: skip
    members = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps({"manifests": [entry]}).encode(),
        f"blobs/sha256/{digest}": document, f"blobs/sha256/{hashlib.sha256(config).hexdigest()}": config,
    }  # fmt: skip
    members |= {f"blobs/sha256/{digest}": raw for digest, raw in objects.items()}
    path = tmp_path / "forged.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as out:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            out.addfile(info, io.BytesIO(raw))
    return path


def test_objects_that_do_not_make_their_file_are_refused(store: Store, tmp_path: Path) -> None:
    known = hashlib.sha256((tmp_path / "one.gguf").read_bytes()).hexdigest()
    before = store.usage()
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)

    with pytest.raises(FormatError, match="do not make this file"):
        store.import_bundle(forged(tmp_path, [(raw, 0)], known, len(raw)))  # poses as a file that is here
    with pytest.raises(FormatError):
        store.import_bundle(forged(tmp_path, [(b"no model", 0)], hashlib.sha256(b"no model").hexdigest(), 8))

    assert store.usage() == before
    assert content(store.find("m:one")) == (tmp_path / "one.gguf").read_bytes()


def test_a_small_bundle_cannot_fill_the_disk(other: Store, tmp_path: Path) -> None:
    zeros = 1 << 20
    path = forged(tmp_path, [(b"GGUF", zeros)], "0" * 64, 10_000_000 * (zeros + 4), count=1)
    with pytest.raises(KvantError):
        other.import_bundle(path)
    n = 1000
    huge = forged(tmp_path, [(b"G" * 5_000_000, 0)], "0" * 64, n * 5_000_000, count=n)
    other.quota = 1_000_000
    with pytest.raises(KvantError):
        other.import_bundle(huge)
    assert_empty(other)


def test_extended_headers_are_refused_and_other_writers_of_plain_tars_are_read(
    bundle: Path, other: Store, tmp_path: Path
) -> None:
    def same(member: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [(member, raw)]

    def dated(member: tarfile.TarInfo, raw: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        member.mtime, member.pax_headers = 1.5, {"path": "../../x"}
        return [(member, raw)]

    with pytest.raises(FormatError):
        other.import_bundle(rewritten(bundle, tmp_path / "pax.tar", dated, tarfile.PAX_FORMAT))
    other.import_bundle(rewritten(bundle, tmp_path / "ustar.tar", same, tarfile.USTAR_FORMAT))
    assert len(other.list()) == 2
