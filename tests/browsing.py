"""A real browser for tests: headless Chromium, found on the machine."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_MS = 30_000
WIDE, PHONE = ViewportSize(width=1280, height=860), ViewportSize(width=390, height=844)
# Whatever the page's policy stops is counted; nothing of the page itself should ever try.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a Chromium; the test is skipped where there is none."""
    found = os.environ.get("KVANT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not os.path.exists(path):  # noqa: PTH110
            pytest.skip("no Chromium. Install one, or name it in KVANT_CHROMIUM.")
        # Chromium refuses its sandbox to root, who runs the tests in containers.
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if is_root else [])
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, *, viewport: ViewportSize = WIDE, scheme: str = "light", path: str = "/ui/"
) -> Iterator[Page]:
    """Open the web page of a gateway; afterwards there was no exception, no breach of policy and no foreign request."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(WATCH)
    page = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url + path)
    try:
        yield page
        assert page.evaluate("window.violations") == []
        assert errors == []
        assert [address for address in asked if not address.startswith(url + "/")] == []
    finally:
        context.close()
