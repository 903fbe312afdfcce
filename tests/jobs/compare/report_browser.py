"""Headless Chromium for the report page: the tests drive it, and as a script it takes the picture of a report.

python tests/jobs/compare/report_browser.py DIR docs/assets/report.png     the picture of DIR/report.html
python tests/jobs/compare/report_browser.py --example docs/assets/report.png     the same from made-up numbers
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def find_chromium() -> tuple[str, str] | None:
    """Paths of the browser and its driver, or None."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser with a profile of its own that logs its console and every request."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = find_chromium()
    if found is None:
        raise RuntimeError("no chromium with chromedriver on this machine")
    browser, driver = found
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        window = webdriver.Chrome(options, Service(driver))
        try:
            yield window
        finally:
            window.quit()


def resize(window: Any, width: int, scale: float = 1.0) -> None:
    """Give the window a screen of that width."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": width < 600}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def show(window: Any, page: Path, *, width: int = 1200, dark: bool = False, scale: float = 1.0) -> None:
    """Open a page as a screen of that width and colour scheme would."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    resize(window, width, scale)
    window.get(page.resolve().as_uri())


def screenshot(window: Any, target: Path, *, width: int = 1200, height: int | None = None) -> None:
    """The top of the page, or all of it, as a PNG."""
    height = height or window.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = window.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    target.write_bytes(base64.b64decode(shot["data"]))


def picture(page: Path, target: Path) -> None:
    """The advice and the leaderboard, as the README shows them: up to the methods that were not tested."""
    from PIL import Image

    with chromium() as window:
        show(window, page, width=1440, scale=1.25)
        end = window.execute_script(
            "const ranks = [...document.querySelectorAll('td.rank')].filter(cell => cell.innerText !== '–');"
            "return ranks.at(-1).getBoundingClientRect().bottom + scrollY + 8"
        )
        screenshot(window, target, width=1440, height=int(end))
    with Image.open(target) as image:
        image.quantize(128).save(target, optimize=True)


if __name__ == "__main__":
    from report_study import write_study

    from eckart.jobs.compare.report import build_report

    source, output = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        directory = write_study(Path(folder)) if source == "--example" else Path(source)
        picture(build_report(directory), Path(output))
