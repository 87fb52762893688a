"""A failing report's page in a browser: an accessibility checker, the keyboard, paper, and many rows."""

import pytest

from mlx_parity.report import page as pages
from reports.cosyvoice3 import WORDING
from tests.reports.test_reports import CHROMIUM, several_causes

sync_api = pytest.importorskip("playwright.sync_api")
checker = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.meta
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open the page of a run with failures: `opened(size, colours)`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(pages.render_html(several_causes(), WORDING), "utf-8")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_(size, colours):
            page = browser.new_page(viewport=size, color_scheme=colours)
            page.goto(file.as_uri())
            return page

        yield open_
        browser.close()


@pytest.mark.parametrize("size, colours, rules", [(PHONE, "dark", None), (DESK, "light", ["color-contrast"])])
def test_an_accessibility_checker_finds_nothing(opened, size, colours, rules):
    page = opened(size, colours)
    page.add_style_tag(content="section { content-visibility: visible }")  # all of it, in sight or not
    options = {"runOnly": {"type": "rule", "values": rules}} if rules else {}
    found = checker.Axe().run(page, options=options).response
    assert found["passes"], "nothing was checked"
    assert [f"{v['id']}: {v['nodes'][0]['html']:.100}" for v in found["violations"]] == []


def test_a_table_is_sorted_by_the_keyboard(opened):
    page = opened(DESK, "light")
    head = page.locator("#table-rows th").nth(1)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    sync_api.expect(head).to_have_attribute("aria-sort", "descending")


def test_on_paper_it_is_light_and_nothing_is_cut_off(opened):
    page = opened(DESK, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    style = "(e) => { const s = getComputedStyle(e); return [s.backgroundColor, s.display, s.maxHeight] }"
    assert page.locator("body").evaluate(style)[0] == "rgb(255, 255, 255)"
    assert page.locator("form.filter").first.evaluate(style)[1] == "none"
    assert page.locator(".tall").first.evaluate(style)[2] == "none"
    assert len(page.pdf()) > 10_000


def test_a_long_table_is_laid_out_when_it_comes_near(opened):
    page = opened(PHONE, "light")
    seen = "(e) => e.checkVisibility({contentVisibilityAuto: true})"
    last = page.locator("#failures h2")
    assert page.locator("#verdict").evaluate(seen) and not last.evaluate(seen)
    last.scroll_into_view_if_needed()
    page.wait_for_function(seen, arg=last.element_handle())
