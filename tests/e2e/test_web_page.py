"""The web page in a real browser, before a real gateway with real engines: chat, compare, models, loaded."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the page is tested in a browser")

from playwright.sync_api import Browser, Page, Route, expect

from browsing import PHONE, WIDE, browser, opened
from kvant.serve.keys import Keys
from served import Served, served, write_gguf

pytestmark = pytest.mark.browser
expect.set_options(timeout=30_000)
TABS = ("chat", "compare", "cards", "loaded")
HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script><b>bold</b>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, (name, kld) in enumerate((("tiny-A", 0.2), ("tiny-B", 0.05))):
        path = write_gguf(root / f"{name}.gguf", seed=seed, context=16384)
        os.utime(path, (10**9 - seed,) * 2)  # the newest is the one that is chosen
        score = {"size_bytes": path.stat().st_size, "kld_mean": kld, "kld_se": 0.002, "kld_p99": 1.5, "top1": 0.91}
        passport = {"base_sha256": "b" * 64, "text": "held out", "text_sha256": "c" * 64, "score": score}
        path.with_suffix(".passport.json").write_text(json.dumps(passport))
    return root


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[Served]:
    with served(root, context=16384) as running:
        yield running


@pytest.fixture
def page(chromium: Browser, gateway: Served) -> Iterator[Page]:
    with opened(chromium, gateway.url) as page:
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        yield page


def say(page: Page, text: str, *, tokens: int | None = 8) -> None:
    page.get_by_label("Max. tokens").first.fill("" if tokens is None else str(tokens))
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def make_it_say(page: Page, text: str) -> None:
    """Have the engine's grammar leave the model no other answer; it still says it token by token."""

    def handle(route: Route) -> None:
        body: Any = route.request.post_data_json
        route.continue_(post_data=body | {"format": {"const": text}})

    page.unroute("**/api/chat")
    page.route("**/api/chat", handle)


def answers(page: Page) -> Any:
    return page.locator(".theirs .answer")


def answered(page: Page, n: int = 1) -> None:
    """Wait until the last of `n` answers is whole."""
    expect(answers(page)).to_have_count(n)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


# Chat


def test_a_conversation_streams_and_goes_on(page: Page) -> None:
    sent: list[Any] = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if request.url.endswith("/api/chat") else None
    )
    page.get_by_label("System prompt").first.fill("Be brief.")
    page.get_by_label("Temperature").first.fill("0.5")
    page.get_by_label("Seed").first.fill("7")

    say(page, "Hello")
    answered(page)
    say(page, "And then?")
    answered(page, 2)

    expect(page.locator(".theirs .note").last).to_contain_text("8 tokens · ")
    expect(page.locator(".theirs .note").last).to_contain_text("tokens/s · first token after ")
    expect(page.locator(".theirs .note").last).to_contain_text("cut at the limit")
    assert sent[0]["options"] == {"temperature": 0.5, "num_predict": 8, "seed": 7}
    assert [message["role"] for message in sent[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert sent[1]["messages"][0]["content"] == "Be brief."


def test_escape_stops_the_answer_and_the_engine(page: Page) -> None:
    say(page, "Go on for ever", tokens=None)
    expect(answers(page)).not_to_be_empty()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()

    page.keyboard.press("Escape")

    answered(page)
    expect(page.locator(".theirs .note")).to_contain_text("Stopped · ")
    expect(answers(page)).not_to_be_empty()
    page.get_by_role("tab", name="Loaded").click()
    expect(page.locator("article").filter(has_text="tiny-A").locator(".badge")).to_have_text("idle")


def test_answers_are_given_again_and_questions_changed(page: Page) -> None:
    make_it_say(page, "First")
    say(page, "Hello", tokens=None)
    answered(page)
    expect(answers(page)).to_have_text('"First"')

    make_it_say(page, "Second")
    page.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_have_text('"Second"')
    answered(page)
    page.locator(".mine").hover()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("Good evening")
    page.keyboard.press("Enter")
    answered(page)

    expect(page.locator(".mine .said")).to_have_text("Good evening")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("What would you like to ask?")).to_be_visible()


def test_a_conversation_outlives_a_reload_of_its_tab_alone(page: Page, chromium: Browser, gateway: Served) -> None:
    say(page, "Remember this")
    answered(page)

    page.reload()

    expect(page.locator(".said")).to_have_text("Remember this")
    with opened(chromium, gateway.url) as other:
        expect(other.get_by_text("What would you like to ask?")).to_be_visible()


# What a model says is never HTML


def test_a_model_that_writes_html_writes_text(page: Page) -> None:
    make_it_say(page, HOSTILE)
    say(page, "Show me", tokens=None)
    answered(page)

    expect(answers(page)).to_contain_text(HOSTILE)
    assert page.locator(".theirs img, .theirs script, .theirs b").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_stored_conversation_is_text_too(page: Page) -> None:
    links = "[a](javascript:hacked=1) [b](data:text/html,x) ![c](https://c.example/x.png) [d](https://ok.example)"
    blocks = (f"# {HOSTILE}", f"- {HOSTILE}", f"|a|\n|-|\n|{HOSTILE}|", f"```\n{HOSTILE}\n```", f"> **{HOSTILE}**")
    turns: list[dict[str, Any]] = [
        {"role": role, "text": text, "model": HOSTILE, "problem": None, "thinking": HOSTILE}
        for text in (HOSTILE, links, *blocks)
        for role in ("user", "assistant")
    ]
    turns.append({"role": "assistant", "text": "", "model": "m", "problem": HOSTILE})
    page.evaluate("(turns) => sessionStorage.setItem('kvant.chat', JSON.stringify({ turns }))", turns)

    page.reload()

    expect(page.locator(".turn")).to_have_count(len(turns))
    expect(page.locator(".turns pre")).to_have_text(HOSTILE)
    assert page.locator(".turns img, .turns script, .turns b, .turns iframe").count() == 0
    assert page.locator(".turns a").evaluate_all("(all) => all.map((a) => a.protocol)") == ["https:", "https:"]
    assert page.locator(".turns a").evaluate_all("(all) => all.map((a) => a.rel)") == ["noopener noreferrer"] * 2
    assert page.evaluate("window.hacked") is None


def test_stored_nonsense_does_not_break_the_page(page: Page) -> None:
    for kept in (
        "{",
        "3",
        '{"turns": 3}',
        '{"turns": [null]}',
        '{"turns": [{"role": "x", "text": "y"}, {"text": {}}]}',
    ):
        page.evaluate("(kept) => sessionStorage.setItem('kvant.chat', kept)", kept)
        page.reload()
        expect(page.get_by_text("What would you like to ask?")).to_be_visible()


def test_the_policy_holds_if_the_page_should_fail(chromium: Browser, gateway: Served) -> None:
    with opened(chromium, gateway.url) as page:
        said = page.evaluate("try { document.body.innerHTML = '<p>x</p>'; 'made' } catch (error) { error.name }")
        page.evaluate("""() => {
          const script = document.createElement('script');
          try { script.textContent = 'window.hacked = 1'; document.body.append(script); } catch { /* refused */ }
        }""")

        assert said == "TypeError"
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("window.violations").pop() != ""
        page.evaluate("window.violations = []")  # these were ours


# Compare, models, loaded


def test_two_variants_answer_side_by_side_with_their_differences(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#facts-a")).to_contain_text("KLD 0.2000 ± 0.0020")
    page.get_by_text("Settings").last.click()
    page.locator("#compare-max").fill("12")

    page.get_by_label("Prompt", exact=True).fill("Tell me")
    page.keyboard.press("Enter")

    expect(page.locator("#stats-a")).to_contain_text("12 tokens · ")
    expect(page.locator("#stats-b")).to_contain_text("tokens/s")
    expect(page.locator("#compare-summary")).to_contain_text("% of all words are in both texts")
    assert page.locator("#compare-results mark").count() > 0
    assert page.locator("#text-a").inner_text() != page.locator("#text-b").inner_text()
    page.get_by_label("Mark differences").uncheck()
    expect(page.locator("#compare-results mark")).to_have_count(0)


def test_a_variant_compared_with_itself_is_the_same_in_turn(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Variant B").select_option("tiny-A")
    page.get_by_label("Variant A").select_option("tiny-A")
    make_it_say(page, "The same words")
    page.get_by_label("One after the other").check()

    page.get_by_label("Prompt", exact=True).fill("Tell me")
    page.get_by_role("button", name="Compare", exact=True).click()

    expect(page.locator("#compare-summary")).to_have_text("Both texts are the same, word by word.")
    assert page.locator("#compare-results mark").count() == 0


def test_cards_tell_what_models_are_and_plot_them(page: Page) -> None:
    page.get_by_role("tab", name="Models").click()

    card = page.get_by_role("article", name="tiny-B")
    expect(card).to_contain_text("0.0500 ± 0.0020")
    expect(card).to_contain_text("91.0 %")
    expect(card).to_contain_text("bits per weight")
    expect(card.get_by_role("list", name="Block types by bytes")).to_contain_text("F16 100 %")
    expect(page.locator("svg.wide .point")).to_have_count(2)
    page.locator("svg.wide .point").first.focus()
    expect(page.locator("svg.wide .tip").first).to_be_visible()
    card.get_by_role("button", name="Chat with tiny-B").click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("tiny-B")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_loaded_models_are_shown_and_unloaded(page: Page) -> None:
    say(page, "Hello")
    answered(page)
    page.get_by_role("tab", name="Loaded").click()

    card = page.get_by_role("article", name="tiny-A")
    expect(card).to_contain_text("16,384 tokens a request")
    expect(page.get_by_text("Memory for models")).to_be_visible()
    expect(card).to_contain_text("in 5 min")
    for name in ("tiny-A", "tiny-B"):
        for button in page.get_by_role("button", name=f"Unload {name}").all():
            button.click()
            expect(page.get_by_role("article", name=name)).to_have_count(0)

    expect(page.get_by_text("No model is loaded.")).to_be_visible()


# Keys, errors, connection


def test_a_gateway_with_keys_asks_for_one(chromium: Browser, root: Path, tmp_path: Path) -> None:
    key = Keys(tmp_path / "keys.json").add("page", scopes=("inference",))
    with (
        served(root, require_keys=True, keys_file=tmp_path / "keys.json") as gateway,
        opened(chromium, gateway.url) as page,
    ):
        dialog = page.get_by_role("dialog", name="API key")
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("not valid here")
        expect(dialog).to_be_visible()
        page.keyboard.type(key)
        page.keyboard.press("Enter")

        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        say(page, "Hello", tokens=3)
        answered(page)
        page.get_by_role("tab", name="Loaded").click()  # this key may not see the status: Ollama's API tells less
        expect(page.get_by_role("article", name="tiny-A")).to_be_visible()
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert key not in page.content()
        page.get_by_role("button", name="Forget key").click()
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_text("This gateway wants an API key.").first).to_be_visible()


def test_refusals_are_told_in_words_and_can_be_tried_again(page: Page) -> None:
    busy = {"error": "queue: 9 requests wait already, the limit is 8."}
    page.route("**/api/chat", lambda route: route.fulfill(status=503, json=busy, headers={"retry-after": "7"}))
    say(page, "Hello")
    expect(page.get_by_role("alert")).to_contain_text(
        "queue: 9 requests wait already, the limit is 8. Try again in 7 s."
    )

    page.unroute("**/api/chat")
    page.get_by_role("button", name="Try again").click()

    answered(page)
    expect(page.locator(".theirs .note")).to_contain_text("tokens/s")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"message": {"content": "Half"}, "done": false}\n', "The answer broke off."),
        (
            '{"message": {"content": "Half"}, "done": false}\n{"error": "model \'tiny\': crashed."}\n',
            "model 'tiny': crashed.",
        ),
        ('{"message": {"content": "Half"}, "done": false}\n{"mess', "could not be read"),
    ],
)
def test_an_answer_that_breaks_off_keeps_what_came(page: Page, body: str, words: str) -> None:
    page.route("**/api/chat", lambda route: route.fulfill(body=body, content_type="application/x-ndjson"))

    say(page, "Hello")

    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(answers(page)).to_have_text("Half")


def test_a_lost_connection_is_told_and_found_again(page: Page) -> None:
    page.context.set_offline(True)
    say(page, "Hello")
    expect(page.get_by_text("The gateway cannot be reached.")).to_be_visible()
    expect(page.get_by_text("The connection to the gateway is lost.")).to_be_visible()

    page.context.set_offline(False)
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_text("The connection to the gateway is lost.")).to_be_hidden()
    page.get_by_role("button", name="Try again").click()

    answered(page)
    expect(page.locator(".theirs .note")).to_contain_text("tokens/s")


def test_a_gateway_without_models_says_what_to_do(chromium: Browser, tmp_path: Path) -> None:
    with served(tmp_path) as gateway, opened(chromium, gateway.url) as page:
        expect(page.get_by_text("There is no model to chat with yet.")).to_be_visible()
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        page.get_by_role("tab", name="Models").click()
        expect(page.get_by_text("There are no models yet.")).to_be_visible()


# Everybody


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("tab", name="Chat")).to_be_focused()
    for name in ("Compare", "Models", "Loaded", "Chat"):
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "chat-input":
            break
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    expect(page.get_by_label("Message", exact=True)).to_have_value("One\nTwo")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("One\nTwo")
    expect(page.locator("#announcer")).to_have_text("Answering.")
    page.keyboard.press("Escape")
    answered(page)


@pytest.mark.parametrize("tab", TABS)
def test_no_rule_of_accessibility_is_broken(chromium: Browser, gateway: Served, tab: str) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-core comes with it")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    with opened(chromium, gateway.url, path=f"/ui/#{tab}") as page:
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        if tab == "chat":
            page.route(
                "**/api/chat", lambda route: route.fulfill(body=MARKDOWN_ANSWER, content_type="application/x-ndjson")
            )
            say(page, "Show me")
            answered(page)
        if tab == "cards":
            expect(page.get_by_role("article")).to_have_count(2)
        page.evaluate(source)
        colours = set()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            found = page.evaluate("axe.run()")
            told = [f"{rule['id']}: {[node['html'] for node in rule['nodes']]}" for rule in found["violations"]]
            assert told == [], scheme
        assert len(colours) == 2


MARKDOWN_ANSWER = "".join(
    json.dumps(line) + "\n"
    for line in (
        {"message": {"content": "# A\n\n- `b` [c](https://c.example)\n\n```py\nd\n```\n\n"}, "done": False},
        {"message": {"content": "|e|\n|-|\n|f|\n\n> " + "g" * 300 + ""}, "done": False},
        {"message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 9, "eval_duration": 10**8},
    )
)  # fmt: skip


@pytest.mark.parametrize("tab", TABS)
def test_a_phone_shows_everything_without_scrolling_sideways(chromium: Browser, gateway: Served, tab: str) -> None:
    with opened(chromium, gateway.url, viewport=PHONE, path=f"/ui/#{tab}") as page:
        expect(page.get_by_role("tab", selected=True)).to_be_in_viewport()
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        if tab == "chat":
            page.route("**/api/chat", lambda route: route.fulfill(body=MARKDOWN_ANSWER, content_type="text/plain"))
            page.get_by_label("Message", exact=True).fill("w" * 300)
            page.keyboard.press("Enter")
            answered(page)
        if tab == "cards":
            expect(page.get_by_role("article")).to_have_count(2)

        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_theme_follows_the_system_until_one_is_chosen(chromium: Browser, gateway: Served) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, gateway.url, scheme="dark", viewport=WIDE) as page:
        dark = page.evaluate(colour)
        page.get_by_role("button", name="Theme").click()
        expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
        light = page.evaluate(colour)
        page.reload()
        expect(page.get_by_role("button", name="Theme: light")).to_be_visible()

        assert light == page.evaluate(colour)
        assert light != dark


def test_nothing_moves_for_those_who_do_not_want_it(chromium: Browser, gateway: Served) -> None:
    with opened(chromium, gateway.url) as page:
        page.emulate_media(reduced_motion="reduce")
        page.route("**/api/chat", lambda _: None)  # never answers
        say(page, "Hello")
        waiting = page.locator(".waiting")
        expect(waiting).to_be_visible()

        assert waiting.evaluate("(node) => getComputedStyle(node, '::before').animationName") == "none"


@pytest.mark.model
def test_the_reference_model_answers(chromium: Browser, reference_model: Path, tmp_path: Path) -> None:
    from kvant.recipes.convert.convert import convert

    convert(reference_model, tmp_path / "smol.gguf", to="gguf", type="Q8_0")
    with served(tmp_path) as gateway, opened(chromium, gateway.url) as page:
        page.get_by_label("Temperature").first.fill("0")
        say(page, "What is the capital of France? Answer in one word.", tokens=12)
        answered(page)

        expect(answers(page)).to_contain_text("Paris")
