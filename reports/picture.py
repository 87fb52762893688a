"""The head of a report as a picture: `python -m reports.picture reports/out/report.html docs/report.png`."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND = "python -m reports.picture"
BROWSERS = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1000
UNTIL = "#ratios"  # the picture ends above this section
COLOURS = 32  # more than the page has; the file shrinks to a third
ALONE = "#provenance { display: none }"  # versions and hashes, which nobody reads in a picture


def take(page: Path, out: Path, browser: str) -> None:
    """Write a PNG of what a report's page shows first."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        sheet = opened.new_page(color_scheme="light", viewport={"width": WIDTH, "height": 600})
        sheet.goto(page.resolve().as_uri())
        sheet.add_style_tag(content=ALONE)
        end = sheet.locator(UNTIL).bounding_box()
        picture = sheet.screenshot(
            full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": end["y"] if end else 600}
        )
        opened.close()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(out, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Take a picture of a report's head",
        epilog=f"example: {COMMAND} reports/out/report.html docs/report.png",
    )
    parser.add_argument("page", type=Path, metavar="REPORT.html", help="that `make verify` wrote")
    parser.add_argument("out", type=Path, metavar="FILE.png", help="the picture")
    options = parser.parse_args(argv)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("picture: no Chromium in PATH; install one, or name it by CHROMIUM", file=sys.stderr)
        return 2
    if not options.page.is_file():
        print(f"picture: {options.page}: no such file; run make verify first", file=sys.stderr)
        return 2
    take(options.page, options.out, browser)
    return 0


if __name__ == "__main__":
    sys.exit(main())
