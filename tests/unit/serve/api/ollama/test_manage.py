"""The routes that change which models there are, called by the official `ollama` client and by hostile ones."""

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import ollama
import pytest
import uvicorn

from hub_server import Fault, Hub
from kvant.errors import ModelNotFoundError, QuotaError
from kvant.files import home
from kvant.hub.licences import policy_path
from kvant.hub.store import Store
from kvant.serve.app import make_app
from kvant.serve.library import DirectoryLibrary, Library
from kvant.serve.settings import Settings
from kvant.serve.storelibrary import StoreLibrary
from kvant.serve.uploads import Uploads

pytestmark = pytest.mark.heavy

MODEL = "hf.co/kv/tiny-GGUF:Q8_0"


def gateway(library: Library, **settings: int) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = make_app(Settings(**settings), library)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)
    listener.close()


@pytest.fixture
def url() -> Iterator[str]:
    yield from gateway(StoreLibrary())


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(host=url)
    yield client
    client._client.close()


@pytest.mark.usefixtures("hub")
def test_pull_tells_its_progress(client: ollama.Client, tiny: Path) -> None:
    data = (tiny / "tiny-Q8_0.gguf").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    lines = list(client.pull(MODEL, stream=True))
    assert lines[0].status == "pulling manifest"
    assert [line.status for line in lines[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    bars = [line for line in lines if line.status == f"pulling {digest[:12]}"]
    assert bars[-1].completed == bars[-1].total == len(data)
    assert {bar.digest for bar in bars} == {f"sha256:{digest}"}
    completed = [bar.completed or 0 for bar in bars]
    assert completed == sorted(completed)
    assert Store.open().find(MODEL).path.read_bytes() == data
    assert client.pull(MODEL).status == "success"


def test_pull_that_fails(hub: Hub, client: ollama.Client) -> None:
    hub.faults["tiny-Q8_0.gguf"] = Fault("corrupt")
    with pytest.raises(ollama.ResponseError, match="SHA-256"):
        list(client.pull(MODEL, stream=True))
    for name, status, said in (
        ("hf.co/kv/none", 400, "no such repository"),
        ("unheard-of", 404, "pull it from the hub"),
        ("llama3.2", 400, "no such repository"),  # a short name, of a repository that this hub has not
        ("https://example.com/x.gguf#sha256=" + "0" * 64, 400, "from the hub alone"),
        ("http://169.254.169.254/latest", 400, "Add #sha256"),
        ("../../etc/passwd", 404, "not found"),
    ):
        with pytest.raises(ollama.ResponseError, match=said) as refused:
            client.pull(name)
        assert refused.value.status_code == status, name
    policy_path().write_text("allow: [mit]")
    with pytest.raises(ollama.ResponseError, match="not on the allow-list") as refused:
        client.pull("hf.co/kv/tiny-GGUF:Q4_K_M")
    assert refused.value.status_code == 403


def upload(client: ollama.Client, path: Path) -> str:
    return str(client.create_blob(path))


def test_create_from_an_uploaded_file_and_then_from_that_model(client: ollama.Client, tiny: Path) -> None:
    digest = upload(client, tiny / "tiny-F16.gguf")
    assert digest == "sha256:" + hashlib.sha256((tiny / "tiny-F16.gguf").read_bytes()).hexdigest()
    made = list(client.create("mine", files={"tiny.gguf": digest}, system="Be brief.", stream=True))
    assert made[-1].status == "success"
    assert not list((home() / "uploads").glob("sha256-*"))  # taken into the store
    client.create(
        "mine:small", from_="mine", quantize="q4_K_M", parameters={"temperature": 0.1, "stop": ["x"]},
        messages=[{"role": "user", "content": "Hi"}], license=["MIT", "more"],
        template="{{ .System }}{{ .Prompt }}",
    )  # fmt: skip
    settings = Store.open().find("mine:small").settings
    assert (settings.system, settings.parameters) == ("Be brief.", {"temperature": 0.1, "stop": ["x"]})
    assert settings.license == ["MIT", "more"]
    assert settings.template is not None
    assert "told.prompt" in settings.template
    assert StoreLibrary().find("mine:small").facts.quantization == "Q4_K_M"


def test_create_from_an_uploaded_directory(client: ollama.Client, tiny: Path) -> None:
    files = {path.name: upload(client, path) for path in (tiny / "tiny").iterdir()}
    client.create("tiny", files=files, quantize="Q8_0")
    assert Store.open().find("tiny").path.read_bytes() == (tiny / "tiny-Q8_0.gguf").read_bytes()
    assert Store.open().find("tiny").settings.source == "upload"


def test_create_that_is_refused(client: ollama.Client, tiny: Path) -> None:
    digest = upload(client, tiny / "tiny-Q8_0.gguf")
    client.create("mine", files={"a.gguf": digest})
    digest = upload(client, tiny / "tiny-Q8_0.gguf")
    for arguments, said in (
        ({"model": "x"}, "either from or files"),
        ({"model": "x", "from_": "nothing"}, "not in the store"),
        ({"model": "x", "from_": "/etc/passwd"}, "not a"),
        ({"model": "x", "from_": str(tiny / "tiny-F16.gguf")}, "name"),
        ({"model": "x", "from_": "mine", "adapters": {"a": digest}}, "adapters are not applied"),
        ({"model": "x", "from_": "mine", "template": "{{ .Tools }}"}, "model's own"),
        ({"model": "x", "from_": "mine", "parameters": {"nope": 1}}, "is not known"),
        ({"model": "x", "from_": "mine", "quantize": "Q4_K_M"}, "lose twice"),
        ({"model": "x", "from_": "mine", "quantize": "Q9"}, "is not known"),
        ({"model": "../x", "from_": "mine"}, "name"),
        ({"model": "x", "files": {"../a.gguf": digest}}, "no plain path"),
        ({"model": "x", "files": {"/a.gguf": digest}}, "no plain path"),
        ({"model": "x", "files": {"d/a.gguf": digest}}, "without directories"),
        ({"model": "x", "files": {"a.gguf": "sha256:" + "0" * 64}}, "Send it to /api/blobs"),
        ({"model": "x", "files": {"a.gguf": "../../../etc/passwd"}}, "is not sha256"),
    ):
        with pytest.raises(ollama.ResponseError, match=said) as refused:
            client.create(**arguments)
        assert refused.value.status_code in (400, 404), arguments
    assert [m.name.model for m in Store.open().list()] == ["mine"]
    assert not list((home() / "downloads").glob("*"))


def test_copy_and_delete(client: ollama.Client, tiny: Path) -> None:
    Store.open().import_file(tiny / "tiny-Q8_0.gguf", "a")
    assert client.copy("a", "b:v2").status == "success"
    assert client.delete("a").status == "success"
    assert [m.name.tagged for m in Store.open().list()] == ["b:v2"]
    with pytest.raises(ollama.ResponseError) as refused:
        client.delete("a")
    assert refused.value.status_code == 404
    for source, target, status in (("a", "c", 404), ("b:v2", "../c", 400)):
        with pytest.raises(ollama.ResponseError) as refused:
            client.copy(source, target)
        assert refused.value.status_code == status


def test_push_says_that_there_is_no_registry(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="there is none yet") as refused:
        client.push("a")
    assert refused.value.status_code == 501


@pytest.mark.parametrize(
    "digest",
    ["sha256:" + "0" * 63, "sha256:" + "0" * 63 + "g", "sha256-../../../etc/passwd", "..%2f..%2fetc%2fpasswd",
     "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 64 + "%00"],
)  # fmt: skip
def test_no_digest_leads_out_of_the_directory(url: str, digest: str) -> None:
    assert httpx2.head(f"{url}/api/blobs/{digest}").status_code in (400, 404)
    assert httpx2.post(f"{url}/api/blobs/{digest}", content=b"x").status_code in (400, 404, 405)
    assert not (home() / "uploads").exists()


def test_an_upload_is_verified_and_bounded(tiny: Path) -> None:
    data = (tiny / "tiny-Q8_0.gguf").read_bytes()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    for url in gateway(StoreLibrary(), max_blob_bytes=len(data)):
        blob = f"{url}/api/blobs/{digest}"
        assert httpx2.head(blob).status_code == 404
        wrong = httpx2.post(blob, content=data[:-1] + b"?")
        assert wrong.status_code == 400
        assert "its digest is" in wrong.json()["error"]
        assert httpx2.head(blob).status_code == 404
        assert httpx2.post(blob, content=data).status_code == 201
        assert httpx2.post(blob, content=data).status_code == 200
        assert httpx2.head(blob).status_code == 200
        other = "sha256:" + hashlib.sha256(b"one more").hexdigest()
        full = httpx2.post(f"{url}/api/blobs/{other}", content=b"one more")
        assert full.status_code in (413, 507)
        assert [p.name for p in (home() / "uploads").iterdir()] == [digest.replace(":", "-")]


def test_uploads_side_by_side_do_not_find_the_same_room(tmp_path: Path) -> None:
    store, uploads = Store.open(tmp_path / "store"), Uploads(100)

    def digest(data: bytes) -> str:
        return "sha256:" + hashlib.sha256(data).hexdigest()

    async def body(data: bytes, go: asyncio.Event) -> AsyncIterator[bytes]:
        yield data[:10]
        await go.wait()
        yield data[10:]

    async def run() -> None:
        go = asyncio.Event()
        first = asyncio.ensure_future(uploads.receive(digest(b"a" * 60), body(b"a" * 60, go), 60, store))
        await asyncio.sleep(0)
        with pytest.raises(QuotaError, match="41 bytes are above the 40 that there is room for beside"):
            await uploads.receive(digest(b"b" * 41), body(b"b" * 41, go), 41, store)
        unsaid = asyncio.ensure_future(uploads.receive(digest(b"c" * 41), body(b"c" * 41, go), None, store))
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(QuotaError, match="41 bytes are above the 40"):
            await unsaid
        assert await first
        assert await uploads.receive(digest(b"d" * 40), body(b"d" * 40, go), None, store)
        store.quota = 100
        with pytest.raises(QuotaError, match="1 bytes are above the 0"):
            await uploads.receive(digest(b"e"), body(b"e", go), 1, store)

    asyncio.run(run())
    assert sum(path.stat().st_size for path in uploads.root.iterdir()) == 100


def test_a_client_that_goes_away_stops_the_download_and_it_continues(hub: Hub, url: str) -> None:
    hub.faults["tiny-Q8_0.gguf"] = Fault("hold", after=500_000)
    with httpx2.stream("POST", f"{url}/api/pull", json={"model": MODEL}, timeout=60) as response:
        lines = response.iter_lines()
        while "completed" not in json.loads(next(lines)):
            pass
        assert hub.held.wait(60)
    hub.release.set()
    hub.faults.clear()
    deadline = time.monotonic() + 60
    while httpx2.post(f"{url}/api/pull", json={"model": MODEL, "stream": False}, timeout=60).status_code == 500:
        assert time.monotonic() < deadline  # until the first download has noticed, it holds the file
        time.sleep(0.1)
    assert Store.open().find(MODEL)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 1}', b'{"model": ["a"]}', b"\xff", b"null"])
@pytest.mark.parametrize("route", ["pull", "create", "copy"])
def test_bodies_that_are_not_requests(url: str, route: str, body: bytes) -> None:
    refused = httpx2.post(f"{url}/api/{route}", content=body)
    assert refused.status_code == 400
    assert refused.json()["error"]


def test_a_directory_is_not_changed(tiny: Path) -> None:
    for url in gateway(DirectoryLibrary(tiny)):
        refused = httpx2.post(f"{url}/api/copy", json={"source": "tiny-F16", "destination": "x"})
        assert refused.status_code == 501
        assert "without --models" in refused.json()["error"]


def test_the_library_of_a_store(tiny: Path) -> None:
    library = StoreLibrary()
    assert library.list() == []
    library.store.import_file(tiny / "tiny-Q8_0.gguf", "a")
    library.store.import_file(tiny / "split-Q8_0-00001-of-00003.gguf", "b:split")
    files = {file.name: file for file in library.list()}
    assert list(files) == ["a:latest", "b:split"]
    assert files["a:latest"].facts.quantization == files["b:split"].facts.quantization == "Q8_0"
    assert files["a:latest"].facts.parameters == files["b:split"].facts.parameters
    assert library.find("A").path.exists()
    for name in ("none", "../x", "", "a@sha256:" + "0" * 64):
        with pytest.raises(ModelNotFoundError):
            library.find(name)
