"""The review page in headless Chromium: thousands of pairs, page by page."""

import pytest

from tests.browser import browser_page, fits
from tpo_jax.curation.review import write_page
from tpo_jax.curation.units import Unit
from tpo_jax.worlds.world import make_videos

COUNT = 3001


@pytest.mark.slow
def test_people_page_through_thousands_of_pairs(tmp_path) -> None:
    (video,) = make_videos(tmp_path / "videos", seed=1, seconds=[4], workers=1)
    name = video.path.rpartition("/")[2]
    texts = {"question": "Why </script> <b>?", "chosen": "x" * 300, "rejected": "a <i>word</i>"}
    units = [
        Unit(id=f"{name}#{i}", video=name, duration=4.0, segment=(1.0, 2.0), **texts)
        for i in range(COUNT - 1)
    ]
    units.append(Unit(id="gone", video="gone.mp4", duration=1.0))
    path = tmp_path / "review.html"
    write_page(path, units, tmp_path / "videos", ["<svg width='3000' height='9'></svg>"])
    assert len(list((tmp_path / "review").iterdir())) == 1  # one picture a video
    complaints = []
    with browser_page() as page:
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for width in (1100, 400):
            page.set_viewport_size({"width": width, "height": 700})
            page.goto(path.as_uri())
            page.click("summary")
            page.wait_for_function("document.querySelector('article img').naturalWidth > 0")
            assert fits(page)
        assert page.locator("article").count() == 20
        assert page.locator("h3 >> nth=0").text_content() == texts["question"]
        page.click("#next")
        page.check("article >> nth=1 >> input")
        page.fill("#page", "151")
        page.press("#page", "Enter")
        assert page.locator("article").count() == 1 and "gone.mp4" in page.text_content("article")
        assert page.is_disabled("#next")
        page.check("article input")
        # Excluded pairs survive a reload.
        page.reload()
        assert page.input_value("#page") == "151" and page.is_checked("article input")
        with page.expect_download() as saved:
            page.click("#save")
        assert saved.value.path().read_text().split() == [f"{name}#21", "gone"]
    assert not complaints
