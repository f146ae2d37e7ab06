"""The page in headless Chromium: choose and upload a video, see frames and both answers."""

import os
import shutil

import httpx
import pytest

from tests.serving.conftest import QUESTIONS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow
# Names on Debian and others; TPO_JAX_SCREENSHOT names a file for a screenshot.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def page():
    with playwright.sync_playwright() as browsers:
        known = (browsers.chromium.executable_path, *map(shutil.which, NAMES))
        found = [path for path in known if path and os.path.exists(path)]
        if not found:
            pytest.skip("no Chromium: run `playwright install chromium-headless-shell`")
        # Its own sandbox does not work as root, in containers of CI for instance.
        browser = browsers.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 640})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def expected(server, folder, model):
    part = {"type": "video_url", "video_url": {"url": str(folder / "media/video.mp4")}}
    content = [part, {"type": "text", "text": QUESTIONS[0]}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "num_frames": 8}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    return reply["choices"][0]["message"]["content"]


def answered(page):
    page.wait_for_selector("#ask:not([disabled])")
    return page.locator("article p").all_text_contents()


def test_ask_a_video_and_compare(page, server, folder) -> None:
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    page.goto(server.url)
    page.wait_for_selector("article >> nth=1")
    page.fill("#num_frames", "8")
    page.select_option("#videos", label="video.mp4")
    page.wait_for_selector("#timeline figure >> nth=7")
    images = page.locator("#timeline img")
    assert images.count() == 8
    assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    lefts = images.evaluate_all("all => all.map(one => one.getBoundingClientRect().left)")
    assert lefts == sorted(lefts) and lefts[0] < lefts[-1]
    page.fill("#question", QUESTIONS[0])
    page.click("#ask")
    answers = answered(page)
    assert answers == [expected(server, folder, name) for name in ("tpo", "base")]
    if target := os.environ.get("TPO_JAX_SCREENSHOT"):
        page.screenshot(path=target)

    # The same bytes uploaded are the same video.
    with page.expect_response("**/page/uploads") as uploaded:
        page.set_input_files("#file", folder / "outside.mp4")
    assert uploaded.value.ok
    page.click("#ask")
    assert answered(page) == answers
    assert not complaints

    page.set_input_files("#file", folder / "media/broken.mp4")
    page.wait_for_selector("#status.error")
    assert page.locator("#timeline figure").count() == 0
