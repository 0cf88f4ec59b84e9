"""A headless Chromium for tests of pages; they skip, and say so, where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Return where Chromium is, if it is installed."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def started() -> Iterator[Any]:
    """Yield a browser of playwright's, which is driven by the Chromium of the system: none is fetched."""
    path = chromium()
    if path is None:
        pytest.skip(f"no Chromium ({', '.join(_NAMES)}): apt-get install chromium, or your system's package of it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # which root cannot have
        yield browser
        browser.close()
