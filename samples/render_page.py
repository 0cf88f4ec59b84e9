"""Take the picture of a page that `tmtool preview --html` wrote: python samples/render_page.py PAGE.html PICTURE.png (needs Chromium)."""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.browser import chromium

_SIZE = {"width": 1120, "height": 980}


def main(page: Path, target: Path) -> None:
    """Point at the map, and write what the window shows, in 128 colours."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = browser.new_page(viewport=_SIZE)
        tab.goto(page.resolve().as_uri())
        stage = tab.locator("#stage").bounding_box()
        assert stage is not None
        tab.mouse.move(stage["x"] + 0.7 * stage["width"], stage["y"] + 0.4 * stage["height"])
        tab.locator("#readings dd").first.wait_for()
        data = tab.screenshot()
        browser.close()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
