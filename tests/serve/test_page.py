"""The chat page in a real browser: nothing on it is mocked but what the model says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Running
from tests.serve.standin import SPECIALS, Standin

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
CHROMIUM = os.environ.get("DOUGONG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; name one in DOUGONG_CHROMIUM")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """open_page(server, **context options): the page, which must tell no error and ask no other server."""
    faults: list[str] = []
    contexts = []

    def open_one(server: Running, **options: Any) -> Any:
        context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1000, "height": 700}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith((server.url, "data:")) or faults.append(request.url))
        page.goto(server.url)
        page.wait_for_function("() => document.getElementById('model').textContent !== ''")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []


def talk(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def ended(page: Any, answers: int = 1) -> None:
    page.wait_for_function("count => document.querySelectorAll('.foot').length === count", arg=answers)


def words(page: Any) -> list[str]:
    return page.locator(".message .words").all_inner_texts()


def test_a_conversation(serve: Callable, open_page: Callable) -> None:
    server = serve(Standin("你好 <b>bold</b> 😀"))
    page = open_page(server)
    assert page.inner_text("#model") == "small"
    assert page.is_disabled("#send")
    talk(page, "hi & <i>there</i>")
    ended(page)
    assert words(page) == ["hi & <i>there</i>", "你好 <b>bold</b> 😀"]
    assert page.evaluate("document.activeElement.id") == "text"
    assert "tokens" in page.inner_text(".facts")
    page.fill("#text", "two\nlines")
    page.click("#send")
    ended(page, 2)
    prompt = server.service.prompt_text()
    assert "hi & <i>there</i><|im_end|>" in prompt
    assert "你好 <b>bold</b> 😀<|im_end|>" in prompt
    assert "two\nlines<|im_end|>" in prompt
    page.click("#new")
    assert words(page) == []
    assert page.is_visible("#welcome")
    page.click("#examples button >> nth=0")
    ended(page)
    assert "two\nlines" not in server.service.prompt_text()


def test_shift_enter_begins_a_line(serve: Callable, open_page: Callable) -> None:
    page = open_page(serve())
    page.fill("#text", "one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#text") == "one\ntwo"
    assert words(page) == []


def test_reasoning_is_folded(serve: Callable, open_page: Callable) -> None:
    page = open_page(serve(Standin("<think>\nhm, hm\n</think>\n\nYes.")))
    talk(page, "sure?")
    ended(page)
    assert words(page)[1] == "Yes."
    assert not page.is_visible(".thought")
    page.click("summary")
    assert page.inner_text(".thought") == "hm, hm"


def test_probabilities_on_hover_and_by_keyboard(serve: Callable, open_page: Callable) -> None:
    page = open_page(serve(Standin("斗拱 b")))
    talk(page, "hi")
    ended(page)
    # A Chinese character is three tokens here, and one place to point at.
    assert page.locator(".token").all_inner_texts() == ["斗", "拱", " ", "b"]
    assert not page.is_visible("#tip")
    page.hover(".token >> nth=3")
    assert page.inner_text("#tip .share") == "60.7%"  # exp(-0.5)
    assert page.locator("#tip .row").count() == 5
    page.hover(".token >> nth=0")
    assert page.inner_text("#tip .share") == "22.3%"  # exp(-1.5)
    page.mouse.move(5, 600)
    assert not page.is_visible("#tip")
    page.focus(".assistant .words")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip header code") == "拱"
    page.click("#probabilities")
    assert page.get_attribute("#probabilities", "aria-pressed") == "true"
    plain = "rgba(0, 0, 0, 0)"
    colour = "place => getComputedStyle(document.querySelectorAll('.token')[place]).backgroundColor"
    page.keyboard.press("Escape")
    page.mouse.move(5, 600)
    page.wait_for_function(f"() => ({colour})(0) !== '{plain}'")
    assert page.evaluate(colour, 3) == plain


def test_stop_and_retry(serve: Callable, open_page: Callable) -> None:
    server = serve(Standin("x" * 200))
    page = open_page(server)
    server.service.says = lambda prompt, sampling, choice: "first " * 100
    server.service.going, server.service.lead = False, 9
    talk(page, "hi")
    page.wait_for_function("() => document.querySelectorAll('.token').length === 9")
    assert page.get_attribute("#send", "aria-label") == "Stop"
    page.click("#send")
    ended(page)
    assert "stopped" in page.inner_text(".facts")
    assert server.wait_for(lambda: server.service.open == 0)
    server.service.says, server.service.going = "second", True
    page.click(".foot button >> nth=0")
    page.wait_for_function("() => document.querySelector('.assistant .words').innerText === 'second'")
    ended(page)
    assert words(page) == ["hi", "second"]
    assert "first" not in server.service.prompt_text()


def test_light_dark_and_two_languages(serve: Callable, open_page: Callable) -> None:
    server = serve()
    page = open_page(server, color_scheme="dark", locale="zh-CN")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.get_attribute("#text", "placeholder") == "写点什么"
    page.click("#theme")
    assert page.evaluate(background) != dark
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en"
    assert page.inner_text("#greeting") == "What shall we talk about?"
    page.reload()
    assert page.evaluate(background) != dark, "the choice is remembered"
    assert page.get_attribute("html", "lang") == "en"


def test_settings_reach_the_engine(serve: Callable, open_page: Callable) -> None:
    server = serve()
    page = open_page(server)
    page.click("#settings-open")
    page.fill("#system", "be brief")
    page.fill("#temperature", "0.3")
    page.fill("#max-tokens", "9")
    page.fill("#seed", "4")
    talk(page, "hi")
    ended(page)
    sampling = server.service.samplings[0]
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.3, 9, 4)
    assert server.service.prompt_text().startswith("<|im_start|>system\nbe brief<|im_end|>")


def test_errors_are_told_and_can_be_tried_again(serve: Callable, open_page: Callable) -> None:
    server = serve(Standin("fine"))
    page = open_page(server)
    server.service.fails = RuntimeError("broken")
    talk(page, "hi")
    ended(page)
    assert "RuntimeError" in page.inner_text("[role=alert]")
    server.service.fails = None
    page.click(".foot button >> nth=0")
    page.wait_for_function("() => document.querySelector('.assistant .words').innerText === 'fine'")
    assert page.locator("[role=alert]").count() == 0


def test_a_key_is_asked_for(serve: Callable, browser: Any) -> None:
    server = serve(Standin("fine"), key="s3cret")
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#key", state="visible")
    page.fill("#key", "s3cret")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.getElementById('model').textContent === 'small'")
    talk(page, "hi")
    ended(page)
    assert words(page) == ["hi", "fine"]
    assert "s3cret" not in page.evaluate("JSON.stringify(localStorage)")
    page.close()


def test_a_model_without_a_template_continues_texts(serve: Callable, open_page: Callable) -> None:
    from dougong.tokenizer import byte_tokenizer

    server = serve(Standin(" a time", byte_tokenizer(SPECIALS, chat_template=None)))
    page = open_page(server)
    talk(page, "Once upon")
    ended(page)
    assert words(page) == ["Once upon a time"]
    talk(page, ", in")
    ended(page, 2)
    assert server.service.prompt_text().endswith("Once upon a time, in")


def test_everything_has_a_name_and_fits(serve: Callable, open_page: Callable) -> None:
    page = open_page(serve(Standin("w" * 300)), viewport={"width": 360, "height": 640})
    talk(page, "v" * 200)
    ended(page)
    page.click("#settings-open")
    nameless = """[...document.querySelectorAll('button, input, textarea, summary')].filter(node =>
        !(node.getAttribute('aria-label') || node.textContent || (node.labels || [])[0])).map(node => node.id)"""
    assert page.evaluate(nameless) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    assert page.locator("h1").count() == 1


def test_screenshots_can_be_kept(serve: Callable, open_page: Callable, tmp_path: Path) -> None:
    """Set DOUGONG_SHOTS to a folder to look at the page."""
    folder = Path(os.environ.get("DOUGONG_SHOTS") or tmp_path)
    for scheme in ("light", "dark"):
        page = open_page(serve(Standin("A rainbow is light, bent by rain. 😀")), color_scheme=scheme)
        talk(page, "What is a rainbow?")
        ended(page)
        page.hover(".token >> nth=4")
        page.screenshot(path=folder / f"chat-{scheme}.png")
        assert (folder / f"chat-{scheme}.png").stat().st_size > 5000
