import pytest

from kvant.serve.origins import Origins

OURS = "127.0.0.1:11500"


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True), ("127.0.0.1:1", True), ("[::1]:11500", True), ("kvant.localhost:11500", True),
        ("host.docker.internal:11500", True), ("host.containers.internal", True), ("box.lan", True),
        ("evil.example", False), ("localhost.evil.example", False), ("evillocalhost", False), ("", False),
        ("evil.docker.internal", False), ("host.docker.internal.evil.example", False), ("10.0.0.1", False),
        ("metadata.google.internal", False), ("0.0.0.0", False), ("127.0.0.2", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_names_on_loopback(host: str, is_ours: bool) -> None:
    assert Origins("127.0.0.1", ("Box.lan",), ()).is_ours(host) is is_ours


def test_on_a_network_any_address_is_ours_and_no_name() -> None:
    origins = Origins("0.0.0.0", (), ())
    assert origins.is_ours("10.0.0.1:11500")
    assert origins.is_ours("[2001:db8::1]")
    assert not origins.is_ours("evil.example")


@pytest.mark.parametrize(
    "origin",
    [
        "vscode-webview://0abc", "vscode-file://vscode-app", "app://obsidian.md", "tauri://localhost", "file://",
        "http://tauri.localhost", "https://tauri.localhost", f"http://{OURS}", f"https://{OURS}",
    ],
)  # fmt: skip
def test_own_pages_and_programs_may_call(origin: str) -> None:
    assert Origins("127.0.0.1", (), ()).may_call(origin, OURS)


@pytest.mark.parametrize(
    "origin",
    [
        "null", "https://evil.example", "http://localhost:3000", "http://127.0.0.1:9999", "http://127.0.0.1.evil:11500",
        "chrome-extension://abc", "moz-extension://abc", "http://evil.localhost", "http://tauri.localhost.evil.example",
        "https://app", "app:/x", "http://app://x", "", "about:blank", "data:",
    ],
)  # fmt: skip
def test_pages_of_others_may_not(origin: str) -> None:
    assert not Origins("127.0.0.1", (), ()).may_call(origin, OURS)


def test_a_page_under_a_containers_name_for_this_machine_is_nobodys() -> None:
    host = "host.docker.internal:11500"
    assert not Origins("127.0.0.1", (), ()).may_call(f"http://{host}", host)
    assert Origins("127.0.0.1", ("host.docker.internal",), ()).may_call(f"http://{host}", host)


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("https://App.example/", ["https://app.example"], ["https://app.example:444", "https://app.example.evil"]),
        ("http://localhost:*", ["http://localhost", "http://localhost:3000"],
         ["http://localhost:3000.evil", "http://localhostx:1", "https://localhost:3000", "http://localhost:"]),
        ("chrome-extension://*", ["chrome-extension://abcdef"], ["moz-extension://a", "https://chrome-extension://"]),
        ("*", ["https://anything.example", "null"], []),
    ],
)  # fmt: skip
def test_what_the_operator_allows(pattern: str, fitting: list[str], others: list[str]) -> None:
    origins = Origins("127.0.0.1", (), (pattern,))
    assert all(origins.may_call(origin, OURS) for origin in fitting)
    assert not any(origins.may_call(origin, OURS) for origin in others)
