"""A page of headless Chromium for tests; skips where there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Names on Debian and others.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def browser_page() -> Iterator:
    """Yield a page; skip the test without playwright or Chromium."""
    reason = "playwright is not installed"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
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


def fits(page) -> bool:
    """Return whether the page is no wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")
