"""Downloads: what resumes, what is retried, what is refused, and that nothing wrong ever gets its name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from hub_server import Fault, Hub, serving
from kvant.errors import KvantError, TransferError
from kvant.files import partial_path
from kvant.hub.transfer import ATTEMPTS, Remote, download, http_client, read_range

pytestmark = pytest.mark.heavy

DATA = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.plain["a.gguf"] = DATA
        yield hub


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with http_client() as client:
        yield client


def remote(hub: Hub, sha256: str | None = SHA256) -> Remote:
    return Remote(url=f"{hub.endpoint}/plain/a.gguf", sha256=sha256)


def left(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir() if not p.name.endswith(".lock")}


def test_a_file_comes_whole(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert download(client, remote(hub), path) == SHA256
    assert path.read_bytes() == DATA
    assert left(tmp_path) == {"a.gguf"}
    assert download(client, remote(hub), path) == SHA256
    assert len(hub.asked) == 1  # it was there and right


def test_a_cut_connection_continues_where_it_ended(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("cut", after=100_000, times=2)
    waits: list[float] = []
    assert download(client, remote(hub), tmp_path / "a.gguf", sleep=waits.append) == SHA256
    starts = hub.ranges("a.gguf")
    assert starts[0] == ""
    assert 0 < int(starts[1][6:-1]) < int(starts[2][6:-1]) < len(DATA)
    assert len(waits) == 2


def test_without_a_hash_the_entity_tag_guards_the_resumption(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("cut", after=16_000, times=ATTEMPTS)
    with pytest.raises(TransferError, match="continues it"):
        download(client, remote(hub, None), tmp_path / "a.gguf", sleep=lambda _: None)
    changed = DATA[::-1]
    hub.plain["a.gguf"] = changed
    download(client, remote(hub, None), tmp_path / "a.gguf", sleep=lambda _: None)
    assert (tmp_path / "a.gguf").read_bytes() == changed


def test_a_server_that_ignores_ranges_sends_it_all_again(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("cut", after=16_000, times=ATTEMPTS)
    with pytest.raises(TransferError):
        download(client, remote(hub), tmp_path / "a.gguf", sleep=lambda _: None)
    hub.faults["a.gguf"] = Fault("ignore-range")
    assert download(client, remote(hub), tmp_path / "a.gguf") == SHA256


def test_another_range_than_asked_is_not_used(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("cut", after=100_000)
    with pytest.raises(TransferError):
        _once(client, hub, tmp_path)
    hub.faults["a.gguf"] = Fault("wrong-range")
    assert download(client, remote(hub), tmp_path / "a.gguf", sleep=lambda _: None) == SHA256


def _once(client: httpx2.Client, hub: Hub, directory: Path) -> None:
    def stop(_: float) -> None:
        raise TransferError("enough")

    download(client, remote(hub), directory / "a.gguf", sleep=stop)


def test_a_damaged_part_is_noticed_and_downloaded_again(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("cut", after=100_000)
    with pytest.raises(TransferError):
        _once(client, hub, tmp_path)
    partial = partial_path(tmp_path / "a.gguf")
    partial.write_bytes(b"x" + partial.read_bytes()[1:])
    assert download(client, remote(hub), tmp_path / "a.gguf") == SHA256


def test_a_part_of_something_else_is_not_continued(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    partial_path(tmp_path / "a.gguf").write_bytes(b"other")
    assert download(client, remote(hub), tmp_path / "a.gguf") == SHA256
    assert hub.ranges("a.gguf") == [""]


def test_a_part_longer_than_the_file(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("cut", after=100_000)
    with pytest.raises(TransferError):
        _once(client, hub, tmp_path)
    partial_path(tmp_path / "a.gguf").write_bytes(DATA * 2)
    assert download(client, remote(hub), tmp_path / "a.gguf", sleep=lambda _: None) == SHA256


def test_wrong_bytes_never_get_the_name(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("corrupt")
    with pytest.raises(TransferError, match=r"SHA-256 is .*, not"):
        download(client, remote(hub), tmp_path / "a.gguf")
    assert left(tmp_path) == set()
    (tmp_path / "a.gguf").write_bytes(b"there already, and wrong")
    with pytest.raises(TransferError):
        download(client, remote(hub), tmp_path / "a.gguf")


def test_busy_servers_are_asked_again_and_then_given_up(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    hub.faults["a.gguf"] = Fault("status", status=503, times=2)
    waits: list[float] = []
    download(client, remote(hub), tmp_path / "a.gguf", sleep=waits.append)
    assert waits[0] < waits[1]
    hub.faults["b"] = Fault("status", status=500, times=100)
    hub.plain["b"] = b"b"
    waits.clear()
    with pytest.raises(TransferError, match="answered 500, 6 times"):
        download(client, Remote(url=f"{hub.endpoint}/plain/b"), tmp_path / "b", sleep=waits.append)
    assert len(waits) == ATTEMPTS - 1


@pytest.mark.parametrize(("status", "said"), [(404, "Check the name"), (401, "HF_TOKEN"), (403, "Ask its owner")])
def test_a_refusal_is_not_repeated(hub: Hub, client: httpx2.Client, tmp_path: Path, status: int, said: str) -> None:
    hub.faults["a.gguf"] = Fault("status", status=status)
    with pytest.raises(TransferError, match=said):
        download(client, remote(hub), tmp_path / "a.gguf")
    assert len(hub.asked) == 1


def test_limits(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="above the limit"):
        download(client, remote(hub), tmp_path / "a.gguf", max_bytes=1000)
    with pytest.raises(TransferError, match="not 7"):
        download(client, Remote(url=remote(hub).url, size_bytes=7), tmp_path / "a.gguf")
    hub.faults["a.gguf"] = Fault("flood")
    with pytest.raises(TransferError, match="more than"):
        download(client, remote(hub, None), tmp_path / "a.gguf", max_bytes=len(DATA))
    assert left(tmp_path) == set()


def test_redirects_are_bounded_and_carry_no_credentials(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    secret = {"authorization": "Bearer secret"}
    hub.faults["a.gguf"] = Fault("redirect", to=f"http://localhost:{hub.port}/plain/b")
    hub.plain["b"] = DATA
    download(client, Remote(url=remote(hub).url, headers=secret), tmp_path / "a.gguf")
    assert [(a.path, a.authorization) for a in hub.asked] == [("/plain/a.gguf", "Bearer secret"), ("/plain/b", "")]
    hub.faults["c"] = Fault("redirect", to=f"{hub.endpoint}/plain/c", times=100)
    hub.plain["c"] = b""
    with pytest.raises(TransferError, match="more than 5 times"):
        download(client, Remote(url=f"{hub.endpoint}/plain/c"), tmp_path / "c")
    hub.faults["c"] = Fault("redirect", to="http://example.com/c")
    with pytest.raises(TransferError, match="not encrypted"):
        download(client, Remote(url=f"{hub.endpoint}/plain/c"), tmp_path / "c")
    hub.faults["c"] = Fault("redirect", to="file:///etc/passwd")
    with pytest.raises(TransferError, match="not an https address"):
        download(client, Remote(url=f"{hub.endpoint}/plain/c"), tmp_path / "c")


@pytest.mark.parametrize(
    "url",
    ["http://example.com/a", "ftp://a/b", "file:///etc/passwd", "https://u:p@a.org/", "https://", "https://[", "x"],
)  # fmt: skip
def test_addresses_that_are_not_asked(client: httpx2.Client, tmp_path: Path, url: str) -> None:
    with pytest.raises(TransferError):
        download(client, Remote(url=url), tmp_path / "a")


def test_two_at_the_same_download(hub: Hub, client: httpx2.Client, tmp_path: Path) -> None:
    def again(_: float) -> None:
        with pytest.raises(KvantError, match="another process"):
            download(client, remote(hub), tmp_path / "a.gguf")

    hub.faults["a.gguf"] = Fault("cut", after=100_000)
    assert download(client, remote(hub), tmp_path / "a.gguf", sleep=again) == SHA256


def test_the_start_of_a_file(hub: Hub, client: httpx2.Client) -> None:
    assert read_range(client, remote(hub), 1000) == DATA[:1000]
    hub.faults["a.gguf"] = Fault("ignore-range")
    assert read_range(client, remote(hub), 1000) == DATA[:1000]
    hub.plain["short"] = b"abc"
    assert read_range(client, Remote(url=f"{hub.endpoint}/plain/short"), 1000) == b"abc"


def test_no_server(client: httpx2.Client, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="Connect"):
        download(client, Remote(url="http://127.0.0.1:1/a"), tmp_path / "a", sleep=lambda _: None)
