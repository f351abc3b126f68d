"""Pulling from a hub on loopback through the hub's real client, from addresses and from files."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Fault, Hub, Repo
from kvant.devices import detect as detection
from kvant.devices.limits import Memory
from kvant.errors import (
    BudgetError,
    FormatError,
    LicenceError,
    ModelNotFoundError,
    QuotaError,
    SourceError,
    TransferError,
)
from kvant.files import home, sha256_file
from kvant.formats.gguf.reader import read_gguf
from kvant.formats.open import open_model
from kvant.hub.projectors import tag_of
from kvant.hub.pull import Wish, pull
from kvant.hub.store import Store
from kvant.progress import Silent
from kvant.serve.storelibrary import StoreLibrary
from kvant.testing.pictures import write_tiny_projector

pytestmark = [pytest.mark.usefixtures("hub"), pytest.mark.heavy]

REPO = "hf:kv/tiny-GGUF"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def passport(path: Path, kld: float) -> bytes:
    return json.dumps({"sha256": sha256_file(path), "score": {"kld_mean": kld}, "preset": "x"}).encode()


def test_a_variant_comes_into_the_store_with_its_source(hub: Hub, tiny: Path) -> None:
    got = pull(f"{REPO}:Q8_0")
    assert (got.kind, got.name, got.licence, got.was_here) == ("model", "hf.co/kv/tiny-GGUF:Q8_0", "apache-2.0", False)
    stored = Store.open().find("hf.co/kv/tiny-GGUF:Q8_0")
    assert stored.path.read_bytes() == (tiny / "tiny-Q8_0.gguf").read_bytes()
    assert stored.settings.source == f"{REPO}@{COMMIT}:tiny-Q8_0.gguf"
    assert stored.settings.license == ["apache-2.0"]
    assert not any((home() / "downloads").iterdir())
    asked = len(hub.ranges("tiny-Q8_0.gguf"))
    assert pull(f"{REPO}:Q8_0").was_here
    assert len(hub.ranges("tiny-Q8_0.gguf")) == asked


def test_what_could_never_fit_the_quota_is_not_fetched(hub: Hub) -> None:
    Store.open().quota = 1000
    with pytest.raises(QuotaError, match=r"bytes are above the store's quota of 1000\. Choose a smaller"):
        pull(f"{REPO}:Q8_0")
    assert len(hub.ranges("tiny-Q8_0.gguf")) == 0


def test_without_a_variant_the_usual_one_comes_and_that_is_said() -> None:
    got = pull(REPO)
    assert got.variant == "Q4_K_M"
    assert "usual one of 3" in got.reason


@pytest.mark.parametrize("choice", ["tiny-Q8_0.gguf", "q8_0", "tiny-q8_0.GGUF"])
def test_a_variant_by_file_or_preset(choice: str) -> None:
    assert pull(f"{REPO}@main:{choice}", Wish(name="mine")).name == "mine"


def test_the_web_address_of_a_repository_is_understood() -> None:
    assert pull("https://huggingface.co/kv/tiny-GGUF").variant == "Q4_K_M"
    assert pull("hf.co/kv/tiny-GGUF:Q8_0").variant == "Q8_0"


def test_shards_are_one_variant(hub: Hub, tiny: Path) -> None:
    shards = {p.name: p.read_bytes() for p in sorted(tiny.glob("split-*.gguf"))}
    assert len(shards) > 1
    hub.repos["kv/split"] = Repo(shards)
    got = pull("hf:kv/split")
    assert got.variant == "Q8_0"
    assert read_gguf(Path(got.path)).n_weights == read_gguf(tiny / "tiny-Q8_0.gguf").n_weights
    del shards[sorted(shards)[0]]
    hub.repos["kv/broken"] = Repo(shards)
    with pytest.raises(SourceError, match="neither GGUF"):
        pull("hf:kv/broken")


def test_what_is_asked_and_is_not_there() -> None:
    with pytest.raises(SourceError, match="Use one of Q4_K_M, Q8_0, F16"):
        pull(f"{REPO}:Q2_K")
    with pytest.raises(SourceError, match="no such repository"):
        pull("hf:kv/nothing")
    with pytest.raises(SourceError, match="no such revision"):
        pull(f"{REPO}@v9")


@pytest.mark.parametrize(
    "text",
    ["hf:kv", "hf:../x/y", "hf:a/b/c", "hf:a/..", "hf:kv/x:../../etc", "hf:kv/x@../y:z", "hf:kv/x:a\nb", "hf:",
     "hf:a/b:/c", "https://e.com/x.gguf", "https://e.com/x.gguf#sha256=12",
     "https://e.com/x.zip#sha256=" + "0" * 64],
)  # fmt: skip
def test_sources_that_are_not_understood(text: str) -> None:
    with pytest.raises(SourceError):
        pull(text)


def test_wrong_bytes_are_not_stored(hub: Hub) -> None:
    hub.faults["tiny-Q8_0.gguf"] = Fault("corrupt")
    with pytest.raises(TransferError, match="SHA-256"):
        pull(f"{REPO}:Q8_0")
    with pytest.raises(ModelNotFoundError):
        Store.open().find("hf.co/kv/tiny-GGUF:Q8_0")


def test_a_hostile_list_of_files(hub: Hub) -> None:
    hub.repos["kv/evil"] = Repo({"../../evil.gguf": b"x"})
    with pytest.raises(SourceError, match="no plain path"):
        pull("hf:kv/evil")
    hub.repos["kv/zeros"] = Repo({"zeros.gguf": b"GGUF" + bytes(1000)})
    with pytest.raises(FormatError):
        pull("hf:kv/zeros")


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token = "hf_secret"
    hub.repos["kv/tiny-GGUF"].gated = "auto"
    with pytest.raises(LicenceError, match="asks for agreement"):
        pull(REPO)
    pull(REPO, Wish(accepted=["apache-2.0"]))
    seen = {("storage" in a.path, a.authorization) for a in hub.asked}
    assert seen == {(False, "Bearer hf_secret"), (True, "")}


def test_licences_gate(hub: Hub) -> None:
    hub.repos["kv/tiny-GGUF"].license = "llama3.2"
    with pytest.raises(LicenceError, match=r"llama3\.2, which is not on the allow-list.*--accept-licence llama3\.2"):
        pull(REPO)
    assert not any("resolve" in a.path for a in hub.asked)
    assert pull(REPO, Wish(accepted=["llama3.2"])).licence == "llama3.2"
    hub.repos["kv/tiny-GGUF"].license = None
    with pytest.raises(LicenceError, match="--accept-licence unknown"):
        pull(REPO, Wish(name="other"))


# -- offline


def test_offline_gives_what_is_here_and_asks_nobody(hub: Hub) -> None:
    with pytest.raises(TransferError, match="without --offline"):
        pull(REPO, Wish(offline=True))
    assert hub.asked == []
    pull(f"{REPO}:Q8_0")
    hub.asked.clear()
    assert pull(REPO, Wish(offline=True)).variant == "Q8_0"
    assert pull(f"{REPO}:tiny-Q8_0.gguf", Wish(offline=True)).was_here
    assert hub.asked == []
    with pytest.raises(TransferError):
        pull(f"{REPO}:Q4_K_M", Wish(offline=True))


# -- directories


def hf_repo(tiny: Path) -> Repo:
    files = {path.name: path.read_bytes() for path in (tiny / "tiny").iterdir()}
    more = {"README.md": b"---\nlicense: mit\n---\n", "modeling_x.py": b"import os", "pytorch_model.bin": b"x"}
    return Repo({**files, **more}, tags=("safetensors",), license="mit")


def test_a_directory_comes_whole_and_without_code(hub: Hub, tiny: Path) -> None:
    hub.repos["kv/tiny"] = hf_repo(tiny)
    got = pull("hf:kv/tiny")
    assert got.kind == "directory"
    assert shlex.split(got.next) == ["kvant", "optimize", got.path]
    names = {p.name for p in Path(got.path).iterdir()}
    assert names == {p.name for p in (tiny / "tiny").iterdir()} | {"README.md"}
    assert open_model(got.path).n_weights > 0
    assert pull("hf:kv/tiny").was_here
    assert pull("hf:kv/tiny", Wish(offline=True)).path == got.path


def test_a_directory_with_one_wrong_file_does_not_appear(hub: Hub, tiny: Path) -> None:
    hub.repos["kv/tiny"] = hf_repo(tiny)
    hub.faults["tokenizer.json"] = Fault("corrupt")
    with pytest.raises(TransferError, match="git hash"):
        pull("hf:kv/tiny")
    assert not (home() / "models").exists()
    assert Path(pull("hf:kv/tiny").path).is_dir()


def test_formats_that_are_not_run_here(hub: Hub) -> None:
    hub.repos["kv/onnx"] = Repo({"model.onnx": b"x", "config.json": b"{}"}, tags=("onnx",))
    with pytest.raises(SourceError, match=r"holds neither GGUF files nor a model in safetensors, but json, onnx"):
        pull("hf:kv/onnx")


# -- addresses and files


def test_an_address_with_its_hash(hub: Hub, tiny: Path) -> None:
    data = (tiny / "tiny-Q8_0.gguf").read_bytes()
    hub.plain["x.gguf"] = data
    url = f"{hub.endpoint}/plain/x.gguf#sha256={hashlib.sha256(data).hexdigest()}"
    with pytest.raises(LicenceError):
        pull(url)
    got = pull(url, Wish(name="mine:v1", accepted=["unknown"]))
    assert got.name == "mine:v1"
    assert Store.open().find("mine:v1").settings.source == url
    assert pull(url, Wish(name="mine:v1", offline=True)).was_here
    wrong = f"{hub.endpoint}/plain/x.gguf#sha256={'0' * 64}"
    with pytest.raises(TransferError, match="SHA-256"):
        pull(wrong, Wish(accepted=["unknown"]))


def test_a_file_and_a_directory_here(tiny: Path) -> None:
    got = pull(str(tiny / "tiny-Q8_0.gguf"))
    assert got.name == "tiny-Q8_0"
    assert (tiny / "tiny-Q8_0.gguf").exists()
    with pytest.raises(SourceError, match="kvant optimize"):
        pull(str(tiny / "tiny"))


# -- what fits


def memory_of(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(detection, "memory", lambda: Memory(total_bytes=available, available_bytes=available))


def test_the_largest_that_fits_is_taken_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    memory_of(monkeypatch, 10**9)
    got = pull(REPO, Wish(fit=True))
    assert got.variant == "Q8_0"  # full precision would fit too, and shows no difference
    assert "largest of 3 variants" in got.reason
    memory_of(monkeypatch, 10_000_000)
    with pytest.raises(BudgetError, match="no variant fits this machine"):
        pull(REPO, Wish(fit=True))


def test_passports_decide_where_there_are_any(hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_of(monkeypatch, 10**9)
    repo = hub.repos["kv/tiny-GGUF"]
    repo.files["tiny-Q4_K_M.passport.json"] = passport(tiny / "tiny-Q4_K_M.gguf", 0.01)
    repo.files["tiny-Q8_0.passport.json"] = passport(tiny / "tiny-F16.gguf", 0.0)  # of other bytes: says nothing
    got = pull(REPO, Wish(fit=True))
    assert got.variant == "Q4_K_M"
    assert "least measured KL divergence, 0.0100" in got.reason
    stored = Store.open().find(got.name)
    assert stored.settings.passport is not None
    assert stored.settings.passport["score"] == {"kld_mean": 0.01}


# -- projectors


def with_eyes(hub: Hub, tmp_path: Path, *kinds: str, hidden: int = 64) -> dict[str, bytes]:
    """Put projectors of some types into the repository; every file is another one."""
    made = {}
    for seed, kind in enumerate(kinds):
        path = write_tiny_projector(tmp_path / f"mmproj-tiny-{kind}.gguf", seed=seed, hidden=hidden)
        made[kind] = hub.repos["kv/tiny-GGUF"].files[path.name] = path.read_bytes()
    return made


def test_the_projector_comes_with_a_variant(hub: Hub, tmp_path: Path) -> None:
    files = with_eyes(hub, tmp_path, "F32", "BF16", "F16")
    said: list[str] = []

    class Listener(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    got = pull(f"{REPO}:Q8_0", progress=Listener())
    assert (got.projector, got.projector_bytes) == ("hf.co/kv/tiny-GGUF:mmproj-F16", len(files["F16"]))
    stored = Store.open().find(got.projector)
    assert stored.path.read_bytes() == files["F16"]
    assert stored.settings.source == f"{REPO}@{COMMIT}:mmproj-tiny-F16.gguf"
    assert any("With its projector" in line and "--mmproj none" in line for line in said)
    assert [file.capabilities for file in StoreLibrary(Store.open()).list()] == [["completion", "vision"]]
    asked = len(hub.ranges("mmproj-tiny-F16.gguf"))
    again = pull(f"{REPO}:Q8_0")
    assert (again.was_here, again.projector) == (True, got.projector)
    assert len(hub.ranges("mmproj-tiny-F16.gguf")) == asked


@pytest.mark.parametrize(
    ("choice", "tag"),
    [("bf16", "mmproj-BF16"), ("mmproj-tiny-F32.gguf", "mmproj-F32"), ("none", ""), (None, "mmproj-BF16")],
)
def test_another_projector_or_none(hub: Hub, tmp_path: Path, choice: str | None, tag: str) -> None:
    with_eyes(hub, tmp_path, "F32", "BF16")
    got = pull(f"{REPO}:Q8_0", Wish(projector=choice))
    assert got.projector == (f"hf.co/kv/tiny-GGUF:{tag}" if tag else "")
    assert len(Store.open().list()) == 1 + bool(tag)


def test_a_projector_that_is_not_there_or_no_telling_which(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no projector 'f16'; it has none at all"):
        pull(f"{REPO}:Q8_0", Wish(projector="f16"))
    with_eyes(hub, tmp_path, "F32")
    with pytest.raises(SourceError, match=r"no projector 'q8_0'; it has mmproj-tiny-F32.gguf\. Choose"):
        pull(f"{REPO}:Q8_0", Wish(projector="q8_0"))
    files = hub.repos["kv/tiny-GGUF"].files
    files["mmproj-one-F16.gguf"], files["mmproj-other-F16.gguf"] = b"x", b"xy"
    del files["mmproj-tiny-F32.gguf"]
    with pytest.raises(SourceError, match=r"several projectors for Q8_0: .*--mmproj FILE"):
        pull(f"{REPO}:Q8_0")
    assert not Store.open().list()
    files["mmproj-tiny-F16.gguf"] = (tmp_path / "mmproj-tiny-F32.gguf").read_bytes()  # the one of its name
    assert pull(f"{REPO}:Q8_0").projector


def test_a_damaged_projector_keeps_its_model_away(hub: Hub) -> None:
    hub.repos["kv/tiny-GGUF"].files["mmproj-F16.gguf"] = b"GGUF" + bytes(100)
    with pytest.raises(FormatError):
        pull(f"{REPO}:Q8_0")
    assert not Store.open().list()


def test_fit_counts_the_projector(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_of(monkeypatch, 10**9)
    blind = pull(REPO, Wish(fit=True, name="blind"))
    with_eyes(hub, tmp_path, "F16")
    got = pull(REPO, Wish(fit=True))
    assert "with its projector" in got.reason
    assert "with its projector" not in blind.reason
    memory_of(monkeypatch, 100_000_000)
    with pytest.raises(BudgetError, match="no variant fits"):
        pull(REPO, Wish(fit=True))
    assert pull(REPO, Wish(fit=True, projector="none", name="small")).variant == "Q8_0"


def test_tags_of_projectors() -> None:
    names = {
        "Q4_K_M": "mmproj-F16",
        "latest": "mmproj-F16",
        "UD-Q4_K_XL": "mmproj-UD-Q4_K_XL-F16",
        "4b": "mmproj-4b-F16",
    }
    assert {tag: tag_of("mmproj-tiny-F16.gguf", tag) for tag in names} == names
    assert tag_of("mmproj.gguf", "4b") == "mmproj-4b"


def test_a_passport_of_a_newer_form_is_left_out_and_that_is_said(hub: Hub, tiny: Path) -> None:
    newer = json.loads(passport(tiny / "tiny-Q4_K_M.gguf", 0.01)) | {"passport": 2}
    hub.repos["kv/tiny-GGUF"].files["tiny-Q4_K_M.passport.json"] = json.dumps(newer).encode()
    said: list[str] = []

    class Listener(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    got = pull(f"{REPO}:Q4_K_M", progress=Listener())

    assert Store.open().find(got.name).settings.passport is None
    assert [line for line in said if "tiny-Q4_K_M.passport.json: passport: 2 is newer than 1" in line]


def test_a_variant_and_fit_contradict() -> None:
    with pytest.raises(SourceError, match="Leave one of the two out"):
        pull(f"{REPO}:Q8_0", Wish(fit=True))


def test_what_would_not_be_used_is_refused(hub: Hub, tiny: Path) -> None:
    """A file leaves nothing to choose; a directory has no name in the store; offline there is nobody to ask."""
    hub.repos["kv/tiny"] = hf_repo(tiny)
    with pytest.raises(SourceError, match=r"hf:kv/tiny: holds no GGUF variants.*--fit.*Leave them out"):
        pull("hf:kv/tiny", Wish(fit=True))
    with pytest.raises(SourceError, match=r"hf:kv/tiny: holds no GGUF variants.*--name.*Leave them out"):
        pull("hf:kv/tiny", Wish(name="mine"))
    with pytest.raises(SourceError, match="is one file, so there is none to choose"):
        pull(str(tiny / "tiny-Q8_0.gguf"), Wish(fit=True))
    with pytest.raises(SourceError, match="cannot be asked for its variants offline"):
        pull(REPO, Wish(fit=True, offline=True))
    with pytest.raises(SourceError, match=r"'nosuch.gguf' is not one of its variants. Use one of"):
        pull(f"{REPO}:nosuch.gguf")
    with pytest.raises(SourceError, match=r"holds no GGUF variants. Leave :nosuch out"):
        pull("hf:kv/tiny:nosuch")


def test_offline_a_name_is_not_taken_for_another_source(tiny: Path) -> None:
    pull(str(tiny / "tiny-Q8_0.gguf"), Wish(name="mine"))
    with pytest.raises(SourceError, match=r"mine in the store is from .*tiny-Q8_0.gguf. Leave --name out"):
        pull(REPO, Wish(name="mine", offline=True))
    pull(f"{REPO}:Q8_0", Wish(name="theirs"))
    assert pull(f"{REPO}:Q8_0", Wish(name="theirs", offline=True)).was_here
    with pytest.raises(SourceError, match="theirs in the store is from"):
        pull(f"{REPO}:Q4_K_M", Wish(name="theirs", offline=True))


# -- killed


TELLING = """
import sys
from kvant.hub.pull import pull
from kvant.progress import Silent
from kvant.serve.storelibrary import StoreLibrary
from kvant.testing.pictures import write_tiny_projector
class Told(Silent):
    def advance(self, task, amount):
        print(amount, flush=True)
pull(sys.argv[1], progress=Told())
"""


def test_a_pull_that_was_killed_continues(hub: Hub, tiny: Path) -> None:
    hub.faults["tiny-Q8_0.gguf"] = Fault("hold", after=500_000)  # the rest of the file is not coming
    command = [sys.executable, "-c", TELLING, f"{REPO}:Q8_0"]
    with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        written = 0
        while written < 200_000:  # told after it was written
            written += int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    hub.release.set()
    assert Store.open().list() == []
    kept = next((home() / "downloads").glob("*/*.partial")).stat().st_size
    again = [sys.executable, "-m", "kvant.cli.main", "pull", f"{REPO}:Q8_0", "--json"]
    done = subprocess.run(again, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "hf.co/kv/tiny-GGUF:Q8_0"
    assert hub.ranges("tiny-Q8_0.gguf")[-1] == f"bytes={kept}-"
    assert kept > 100_000
    assert Store.open().find("hf.co/kv/tiny-GGUF:Q8_0").path.read_bytes() == (tiny / "tiny-Q8_0.gguf").read_bytes()
