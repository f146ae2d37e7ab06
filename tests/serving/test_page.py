"""The page in headless Chromium: search, choose, upload and play videos, ask both models."""

import os

import av
import httpx
import numpy as np
import pytest

from tests.browser import browser_page, fits
from tests.serving.conftest import QUESTIONS

pytestmark = pytest.mark.slow
LOADED = """new Promise((resolve) => {
  const player = document.querySelector("#player");
  if (player.readyState) resolve(true);
  player.addEventListener("loadedmetadata", () => resolve(true));
  player.addEventListener("error", () => resolve(false));
})"""


@pytest.fixture(scope="module")
def page():
    with browser_page() as page:
        yield page


def expected(server, folder, model, *messages):
    """The answer of the API to a conversation on the folder's video."""
    part = {"type": "video_url", "video_url": {"url": str(folder / "media/video.mp4")}}
    first = {"role": "user", "content": [part, {"type": "text", "text": messages[0]}]}
    later = [
        {"role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate(messages[1:], 1)
    ]
    body = {"model": model, "messages": [first, *later], "num_frames": 8}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    return reply["choices"][0]["message"]["content"]


def asked(page, question):
    """Ask with Enter; return the answers to this question."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#question:placeholder-shown")
    page.wait_for_selector("#ask:not([disabled])")
    return page.locator(".answers >> nth=-1").locator("p").all_text_contents()


@pytest.fixture(scope="module")
def clip(folder):
    """Add a video that every browser plays; those of the world are in MPEG-4 Visual."""
    path = folder / "media/clip.webm"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=4)
        stream.width = stream.height = 64
        for i in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 16 * i, np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    yield path.name
    path.unlink()


def test_a_click_on_a_frame_goes_there(page, server, clip) -> None:
    page.goto(server.url)
    page.select_option("#videos", label=clip)
    page.wait_for_selector("#strip button >> nth=3")
    assert page.evaluate(LOADED)
    frame = page.locator("#strip button >> nth=2")
    frame.click()
    shown = page.evaluate("document.querySelector('#player').currentTime")
    assert shown == pytest.approx(float(frame.get_attribute("data-time")), abs=0.01)
    assert "now" in frame.get_attribute("class")


def test_ask_a_video_and_compare(page, server, folder) -> None:
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    page.goto(server.url)
    page.wait_for_selector("#videos option")
    page.fill("#num_frames", "16")
    page.fill("#search", "DEO vi")
    page.select_option("#videos", label="video.mp4")
    page.wait_for_selector("#strip button >> nth=15")
    images = page.locator("#strip img")
    assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth > 0)")
    boxes = [button.bounding_box() for button in page.locator("#strip button").all()]
    assert all(a["x"] + a["width"] <= b["x"] for a, b in zip(boxes, boxes[1:], strict=False))
    page.fill("#search", "nothing of it")
    assert page.locator("#videos option").count() == 0
    assert fits(page)

    # What the browser cannot play is shown frame by frame.
    page.click("#strip button >> nth=3")
    assert page.locator("#still").is_visible()
    shown = page.locator("#strip button >> nth=3").locator("img").get_attribute("src")
    assert page.locator("#still").get_attribute("src") == shown

    # Settings and the video survive a reload, and any temperature can be typed.
    page.fill("#num_frames", "8")
    page.fill("#temperature", "0.15")
    page.press("#temperature", "Tab")
    page.reload()
    page.wait_for_selector("#strip button >> nth=7")
    assert page.locator("#strip button").count() == 8
    assert page.input_value("#temperature") == "0.15"
    assert page.evaluate("document.querySelector('#form').checkValidity()") is False  # no question
    assert page.evaluate("document.querySelector('#temperature').checkValidity()")
    page.fill("#temperature", "0")

    answers = asked(page, QUESTIONS[0])
    assert answers == [expected(server, folder, name, QUESTIONS[0]) for name in ("tpo", "base")]
    # A model knows its own earlier answer.
    followed = [
        expected(server, folder, name, QUESTIONS[0], answer, QUESTIONS[1])
        for name, answer in zip(("tpo", "base"), answers, strict=True)
    ]
    assert asked(page, QUESTIONS[1]) == followed
    # TPO_JAX_SCREENSHOT names a file for a screenshot.
    if target := os.environ.get("TPO_JAX_SCREENSHOT"):
        page.screenshot(path=target)

    # The same bytes uploaded are the same video.
    with page.expect_response("**/page/uploads") as uploaded:
        page.set_input_files("#file", folder / "outside.mp4")
    assert uploaded.value.ok
    assert asked(page, QUESTIONS[0]) == answers
    assert not complaints

    page.set_input_files("#file", folder / "media/broken.mp4")
    page.wait_for_selector("#status.error")
    assert page.locator("#strip button").count() == 0


def test_the_page_fits_a_telephone_and_a_dark_room(page, server) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(server.url)
    page.select_option("#videos", label="video.mp4")
    page.wait_for_selector("#strip button")
    assert fits(page)
    dark = page.evaluate("getComputedStyle(document.querySelector('#form')).backgroundColor")
    assert sum(map(int, dark[dark.index("(") + 1 : -1].split(",")[:3])) < 150
