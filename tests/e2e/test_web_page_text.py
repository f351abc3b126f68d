"""The page's own Markdown and its comparison of words, in the browser they run in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the page is tested in a browser")

from playwright.sync_api import Page

from browsing import browser, opened
from served import served

pytestmark = pytest.mark.browser
RENDER = """async (texts) => {
  const { render } = await import("/ui/markdown.js");
  const node = document.createElement("div");
  for (const text of texts) render(node, text);
  return node.innerHTML;
}"""
HOSTILE = [
    "*a ", "**", "_", "[", "[a](https://", "`", "~~", "> ", "- ", "\\", "h", "https://", "#", "1. ", "\n", " ", "a*b_c",
    "|", "|-",
]  # fmt: skip
LINK = '<a href="https://a.example/" rel="noopener noreferrer" target="_blank" title="https://a.example/">{}</a>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    root: Path = tmp_path_factory.mktemp("models")
    with browser() as chromium, served(root) as gateway, opened(chromium, gateway.url) as page:
        yield page


def html(page: Page, *texts: str) -> str:
    return str(page.evaluate(RENDER, list(texts)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# A\n### B #\n###### C", "<h3>A</h3><h5>B</h5><h6>C</h6>"),
        ("#no heading", "<p>#no heading</p>"),
        ("**a** __b__ ~~c~~", "<p><strong>a</strong> <strong>b</strong> <del>c</del></p>"),
        ("*c* _d_ `f`", "<p><em>c</em> <em>d</em> <code>f</code></p>"),
        ("***a***", "<p><strong><em>a</em></strong></p>"),
        ("a_b_c 2*3*4 ** x **", "<p>a_b_c 2<em>3</em>4 ** x **</p>"),
        ("`` a`b `` \\*c\\*", "<p><code>a`b</code> *c*</p>"),
        ("a  \nb", "<p>a  <br>b</p>"),
        ("- a\n- b\n  - c", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
        ("- a\n1. d\n2. e", "<ul><li>a</li></ul><ol><li>d</li><li>e</li></ol>"),
        ("3. a\n\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n\nb", "<ul><li>a</li></ul><p>b</p>"),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("<b>a</b> &amp; <!-- c -->", "<p>&lt;b&gt;a&lt;/b&gt; &amp;amp; &lt;!-- c --&gt;</p>"),
        ("[a](https://a.example/)", f"<p>{LINK.format('a')}</p>"),
        ("see https://a.example/.", f"<p>see {LINK.format('https://a.example/')}.</p>"),
        ("[a](javascript:x) [b](//c.example) [d](ftp://e.example)", "<p>[a](javascript:x) [b](//c.example) [d](ftp://e.example)</p>"),
        ("[a](https://\"onclick=x)", "<p>[a](https://\"onclick=x)</p>"),
        ("|a|b|\n|-|-:|\n|c|d|", None),
    ],
)  # fmt: skip
def test_markdown(page: Page, text: str, expected: str | None) -> None:
    found = html(page, text)

    if expected is None:
        assert '<th scope="col">a</th><th class="to-right" scope="col">b</th>' in found
        assert '<td>c</td><td class="to-right">d</td>' in found
    else:
        assert found == expected


def test_code_keeps_every_character_and_can_be_unfinished(page: Page) -> None:
    whole = html(page, "```py\n<b>\n\n  `x`\n# y\n```\nafter")
    unfinished = html(page, "```py\n<b>\n\n  `x`\n# y")

    assert '<pre tabindex="0"><code>&lt;b&gt;\n\n  `x`\n# y</code></pre>' in whole
    assert whole.endswith("<p>after</p>")
    assert "<code>&lt;b&gt;\n\n  `x`\n# y</code>" in unfinished


def test_a_text_that_grows_ends_as_it_would_have_at_once(page: Page) -> None:
    text = (
        "# T\n\nSome *text*, and\n- a\n- b\n  ```py\n  x = 1\n\n  y\n  ```\n\n1. c\n\n|d|\n|-|\n|e|\n\n```\nf\n```\n> g"
    )
    pieces = [text[:n] for n in range(len(text) + 1)]

    assert html(page, *pieces) == html(page, text)


def test_blocks_that_do_not_change_are_kept(page: Page) -> None:
    kept = page.evaluate("""async () => {
      const { render } = await import("/ui/markdown.js");
      const node = document.createElement("div");
      render(node, "one\\n\\ntwo");
      const first = node.firstChild;
      render(node, "one\\n\\ntwo and more");
      return node.firstChild === first && node.lastChild.textContent;
    }""")

    assert kept == "two and more"


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("end", ["", "\n"])
def test_hostile_repetition_is_drawn(page: Page, piece: str, end: str) -> None:
    assert isinstance(html(page, (piece + end) * (20_000 // len(piece + end))), str)


@pytest.mark.parametrize(
    "text",
    [
        f"# {' ' * 100_000}a", f"a|b\n{' ' * 100_000}x", f"```{' ' * 100_000}`", f"{'~' * 100_000}`",
        f"- {' ' * 100_000}\u2028",
        f"# a {'#' * 100_000} b", f"https://a.example/{')' * 1900}a " * 40,
    ],
    ids=["heading", "divider", "fence", "tildes", "item", "marks", "address"],
)  # fmt: skip
def test_long_rows_are_drawn(page: Page, text: str) -> None:
    assert isinstance(html(page, text), str)


def test_code_and_headings_lose_only_what_marks_them(page: Page) -> None:
    assert html(page, "` a ` ` `` `") == "<p><code>a</code> <code>``</code></p>"
    assert html(page, "# B # C ##  \n## d#\n# ") == "<h3>B # C</h3><h4>d#</h4><h3></h3>"


def test_deep_nesting_ends_as_text(page: Page) -> None:
    found = html(page, ">" * 500 + " a", "\n".join("  " * n + "- a" for n in range(200)))

    assert found.count("<ul>") < 20


def difference(page: Page, a: str, b: str) -> Any:
    return page.evaluate(
        """async ([a, b]) => {
          const { words, common } = await import("/ui/diff.js");
          const { inA, inB, prefix } = common(words(a), words(b));
          return [[...inA].join(""), [...inB].join(""), prefix];
        }""",
        [a, b],
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", ["", "", 0]),
        ("a b", "", ["00", "", 0]),
        ("a b c", "a b c", ["111", "111", 3]),
        ("a b c", "a x c", ["101", "101", 1]),
        ("a b c d", "b d", ["0101", "11", 0]),
        ("a  b\nc", "a b c", ["111", "111", 3]),
        ("x a b", "a b y", ["011", "110", 0]),
    ],
)
def test_words_in_common(page: Page, a: str, b: str, expected: list[Any]) -> None:
    assert difference(page, a, b) == expected


def test_texts_too_long_to_compare_word_by_word_count_as_different(page: Page) -> None:
    first, second, _ = difference(page, "a " * 3000 + "x", "b " * 3000 + "x")

    assert (first, second) == ("0" * 3000 + "1", "0" * 3000 + "1")
