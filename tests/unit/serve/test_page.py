"""The web page's files as they are served, and what they are not allowed to hold."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from kvant.serve import page
from kvant.serve.app import make_app
from kvant.serve.library import DirectoryLibrary
from kvant.serve.settings import Settings

NAMES = sorted(page.files())
SCRIPTS = [name for name in NAMES if name.endswith(".js")]


@pytest.fixture
def client(models: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(models=models, require_keys=True, keys_file=tmp_path / "keys.json")
    with TestClient(make_app(settings, DirectoryLibrary(models)), base_url="http://localhost") as made:
        yield made


def test_the_page_needs_no_key_and_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/ui/")

    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_the_headers_and_is_sent_once(client: TestClient, name: str) -> None:
    first = client.get(f"/ui/{name}")
    again = client.get(f"/ui/{name}", headers={"if-none-match": first.headers["etag"]})

    assert (first.status_code, first.content) == (200, page.files()[name].body)
    assert first.headers["content-security-policy"] == page.POLICY
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])


@pytest.mark.parametrize(
    "path", ["/ui/../page.py", "/ui/..%2fpage.py", "/ui/%2e%2e/page.py", "/ui/none.js", "/ui//etc/passwd"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)

    assert answer.status_code in (401, 404)
    assert b"import" not in answer.content


def test_browsers_are_sent_to_the_page_and_programs_told_what_they_look_for(client: TestClient) -> None:
    browser = client.get("/", headers={"accept": "text/html,*/*;q=0.8"}, follow_redirects=False)
    program = client.get("/", headers={"accept": "*/*"})

    assert (browser.status_code, browser.headers["location"]) == (307, "/ui/")
    assert program.text == "Ollama is running"
    assert client.get("/ui", follow_redirects=False).headers["location"] == "/ui/"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_can_make_html_of_a_text(name: str) -> None:
    source = page.files()[name].body.decode()

    words = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
        "DOMParser",
    )
    assert [word for word in words if word in source] == []


def test_no_file_names_another_place() -> None:
    allowed = {"http://www.w3.org/2000/svg"}
    found = {
        address
        for file in page.files().values()
        for address in re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}[^\s\"'<>)]*", file.body.decode())
    }

    assert found <= allowed


def test_markup_holds_no_script_style_or_handler_and_what_scripts_look_up() -> None:
    markup = page.files()[page.INDEX].body.decode()
    ids = set(re.findall(r'id="([^"]+)"', markup))
    wanted = {
        name for script in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', page.files()[script].body.decode())
    }

    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", markup)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", markup))
    assert wanted <= ids
    assert set(re.findall(r'(?:for|aria-controls|aria-labelledby|aria-describedby)="([^"]+)"', markup)) <= ids


def test_the_page_asks_relative_to_itself_so_that_it_works_below_a_prefix() -> None:
    for name, file in page.files().items():
        if name.endswith((".js", ".html", ".css")):
            text = file.body.decode()
            assert not re.search(r"""(fetch\(|href=|src=|url\()["'`]/""", text), name
    assert b"new URL(`..${path}`, document.baseURI)" in page.files()["api.js"].body
