"""The page in a real browser: Debian's Chromium, without a window."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def both(serve: Callable[..., Any], bundle_of: Callable[[str], Path]) -> Iterator[Running]:
    """A model of pictures and one of clips."""
    with serve({"pictures": bundle_of("llava"), "clips": bundle_of("llava_next_video")}) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, both: Running) -> Iterator[Callable[..., Any]]:
    """Opens the page; whatever a test does there, nothing is asked of other hosts and nothing goes wrong in it."""
    contexts, faults = [], []

    def open_page(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: _check_origin(request.url, both.url, faults))
        page.goto(both.url)
        page.wait_for_selector("#model option", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if "status of 400" not in fault] == []


def _check_origin(url: str, home: str, faults: list[str]) -> None:
    if not url.startswith((home, "data:", "blob:")):
        faults.append(f"asked for {url}")


DROP = """async ([name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], name, {type}));
  for (const kind of ['dragover', 'drop'])
    document.getElementById('drop').dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def drop(page: Any, path: Path, kind: str, as_uri: Callable[[Path], str]) -> None:
    page.evaluate(DROP, [path.name, kind, as_uri(path).split(",")[1]])
    page.wait_for_selector("#preview img, #preview video")


def test_drop_ask_and_see(opened: Callable[..., Any], both: Running, cat: Path, as_uri: Any) -> None:
    page = opened()
    drop(page, cat, "image/jpeg", as_uri)
    assert "chelsea.jpg" in page.inner_text("#drop")
    page.evaluate(
        "() => { window.seen = new Set(); new MutationObserver(() => seen.add(document.getElementById('answer').textContent))"
        ".observe(document.getElementById('answer'), {childList: true, characterData: true, subtree: true}) }"
    )
    page.fill("#question", "What is it?")
    page.click("#ask")
    page.wait_for_selector("#overlay img")
    expected = both.pipeline.generate("What is it?", images=[cat], keep=0.15, max_new_tokens=256)
    assert page.evaluate("document.getElementById('answer').textContent") == expected.text
    assert page.evaluate("seen.size") > 5  # piece by piece
    assert page.inner_text("#figures").startswith(
        f"visual tokens kept\n{expected.kept_tokens} of {expected.visual_tokens}"
    )
    picture = page.locator("#overlay img")
    assert str(expected.kept_tokens) in picture.get_attribute("alt")
    assert picture.evaluate("image => image.complete && image.naturalWidth >= 100")
    assert page.get_attribute("#answer", "aria-busy") == "false"


def test_the_slider_asks_again(opened: Callable[..., Any], cat: Path) -> None:
    page = opened()
    page.set_input_files("#file", cat)
    page.click("#ask")
    page.wait_for_selector("#overlay img")
    before = page.inner_text("#figures dd >> nth=0")
    page.focus("#keep")
    page.keyboard.press("End")
    assert page.inner_text("#keeptext") == "100 %" == page.get_attribute("#keep", "aria-valuetext")
    sync_api.expect(page.locator("#figures dd >> nth=0")).not_to_have_text(before)
    kept, _, total = page.inner_text("#figures dd >> nth=0").partition(" of ")
    assert kept == total and before != f"{kept} of {total}"


def test_a_clip(opened: Callable[..., Any], clip: Path, as_uri: Any) -> None:
    page = opened()
    page.select_option("#model", "clips")
    drop(page, clip, "video/mp4", as_uri)
    page.click("#ask")
    page.wait_for_selector("#overlay img")
    # Frames stand four in a row: over each the patches that were kept.
    width, height = page.locator("#overlay img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert width > height > 200


def test_without_a_picture_and_after_it_is_removed(opened: Callable[..., Any], cat: Path) -> None:
    page = opened()
    page.fill("#question", "Go on.")
    page.click("#ask")
    page.wait_for_selector("#timings:not([hidden])")
    assert page.locator("#overlay img").count() == 0
    page.set_input_files("#file", cat)
    page.click("#remove")
    assert page.locator("#preview *").count() == 0 and not page.is_visible("#remove")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.click("#ask")
    assert [part["type"] for part in asked.value.post_data_json["messages"][0]["content"]] == ["text"]


def test_stop_gives_the_slot_back(opened: Callable[..., Any], both: Running) -> None:
    page = opened()
    left = both.metric("request_failure_total", status="499")
    # The server is asked for more than it can have said when the button is pressed.
    page.route(
        "**/v1/chat/completions", lambda route: route.continue_(post_data=_endless(route.request.post_data_json))
    )
    page.fill("#question", "Go on.")
    page.click("#ask")
    sync_api.expect(page.locator("#answer")).not_to_be_empty()
    page.click("#stop")
    assert page.is_disabled("#stop") and both.comes_to_rest()
    assert both.metric("request_failure_total", status="499") == left + 1
    assert page.inner_text("#error") == ""


def _endless(body: dict[str, Any]) -> str:
    return json.dumps(body | {"max_tokens": 1900, "ignore_eos": True})


def test_what_is_refused_is_read_out(opened: Callable[..., Any], clip: Path, as_uri: Any) -> None:
    page = opened()
    page.select_option("#model", "pictures")
    drop(page, clip, "video/mp4", as_uri)  # a model of pictures only
    page.click("#ask")
    sync_api.expect(page.locator("#error")).not_to_be_empty()
    assert "images only" in page.inner_text("#error") and page.get_attribute("#error", "role") == "alert"


def test_the_keyboard_is_enough(opened: Callable[..., Any]) -> None:
    page = opened()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["file", "question", "keep", "model", "SUMMARY", "ask", "BODY", "file"]
    for label in ("Question", "Visual tokens kept in each frame", "Model"):
        assert page.get_by_label(label, exact=True).count() >= 1
    page.focus("#question")
    page.keyboard.type(" Go on.")
    page.focus("#ask")
    page.keyboard.press("Enter")
    page.wait_for_selector("#timings:not([hidden])")
    assert page.get_attribute("html", "lang") == "en" and page.get_attribute("#answer", "aria-live") == "polite"


def contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of an element's text with what is behind it."""

    def luminance(colour: str) -> float:
        levels = [float(level) / 255 for level in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text, behind = page.evaluate(
        """selector => { let at = document.querySelector(selector); const text = getComputedStyle(at).color;
        while (getComputedStyle(at).backgroundColor === 'rgba(0, 0, 0, 0)') at = at.parentElement;
        return [text, getComputedStyle(at).backgroundColor] }""",
        selector,
    )
    low, high = sorted((luminance(text), luminance(behind)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_light_and_dark_wide_and_narrow(opened: Callable[..., Any], scheme: str, width: int) -> None:
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800})
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 22, 26)"}[scheme]
    for selector in ("h1", "header p", "#question", "label[for=keep]", "#ask", "#drop", "#error", "#model"):
        assert contrast(page, selector) >= 4.5, selector  # WCAG AA
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_a_model_says_is_text(opened: Callable[..., Any]) -> None:
    page = opened()
    chunk = '{"id":"x","choices":[{"index":0,"delta":{"content":"<img src=x onerror=alert(1)><b>bold</b>"}}]}'
    body = f"data: {chunk}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.click("#ask")
    sync_api.expect(page.locator("#answer")).not_to_be_empty()
    assert page.locator("#answer *").count() == 0 and "<b>bold</b>" in page.inner_text("#answer")
