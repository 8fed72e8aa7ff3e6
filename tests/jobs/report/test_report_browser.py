"""A run's page in a real browser: every figure is drawn, nothing is asked for, everybody can use it.

Needs playwright (pip), Debian's chromium, and axe-playwright-python (pip), which has axe-core.
"""

import shutil
from importlib import resources

import pytest
from report_world import MARKUP, sweep_report

from raytune_llm.jobs.report.page import render

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,  # a browser
    pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed"),
]
expect = sync_api.expect
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A sweep's page, in which data and models wrote markup."""
    file = tmp_path_factory.mktemp("run") / "report.html"
    file.write_text(render(sweep_report(24, text=MARKUP)))
    return file.as_uri()


@pytest.fixture
def page(browser, address):
    """A page that has asked for nothing, thrown nothing and opened nothing when the test ends."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened, wrong = context.new_page(), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    opened.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    opened.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto(address)
    yield opened
    context.close()
    assert not wrong


def draw_all(page):
    for figure in page.locator("figure[data-figure]").all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator(".plot.js-plotly-plot")).to_be_visible(timeout=30_000)


def violations(page):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python isn't installed")
    page.evaluate(resources.files(axe).joinpath("axe.min.js").read_text())
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)["violations"]
    return [(one["id"], [node["target"] for node in one["nodes"]]) for one in found]


def test_figures_are_drawn_when_they_are_scrolled_to(page):
    assert page.locator(".js-plotly-plot").count() < page.locator("figure[data-figure]").count()
    draw_all(page)
    assert page.locator("main img, .failed").count() == 0


def test_a_metric_and_a_scale_can_be_chosen(page):
    figure = page.locator("figure[data-figure=curves]")
    figure.scroll_into_view_if_needed()
    axis = figure.locator(".ytitle")
    expect(axis).to_have_text("eval/loss")
    figure.get_by_label("Metric").select_option(label="train/loss")
    expect(axis).to_have_text("train/loss")
    figure.get_by_label("log scale").check()
    assert figure.locator(".plot").evaluate("plot => plot.layout.yaxis.type") == "log"


def test_light_and_dark_can_be_switched(page):
    draw_all(page)
    colour = "plot => plot.layout.font.color"
    before = page.locator("figure[data-figure=curves] .plot").evaluate(colour)
    button = page.get_by_role("button", name="Dark")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    assert page.locator("figure[data-figure=curves] .plot").evaluate(colour) != before
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_a_command_is_copied(page):
    page.locator("#commands").get_by_role("button", name="Copy").first.click()
    expect(page.locator("#announcer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("raytune-llm sweep name=demo")


def test_a_figure_is_saved_as_a_picture(page):
    figure = page.locator("figure[data-figure=curves]")
    figure.scroll_into_view_if_needed()
    with page.expect_download() as download:
        figure.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "curves.png"


def test_the_page_is_reached_by_keyboard(page):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the report")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main') !== null")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_paper_has_every_figure_in_light_colours(page):
    page.emulate_media(color_scheme="dark")
    content = page.pdf(format="A4", print_background=True)
    assert content.startswith(b"%PDF") and len(content) > 50_000
    assert page.locator(".js-plotly-plot").count() == page.locator("figure[data-figure]").count()
    assert page.evaluate("document.documentElement.dataset.theme") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_everybody_can_read_it(page, scheme, width):
    page.set_viewport_size({"width": width, "height": 780})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    draw_all(page)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    assert page.evaluate(SIDEWAYS) <= 0
    assert not violations(page)


def test_a_browser_without_webgl_still_has_the_table(browser, address):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")
    page.goto(address)
    figure = page.locator("figure[data-figure=coordinates]")
    figure.scroll_into_view_if_needed()
    figure.locator("summary").click()
    expect(figure.locator("table")).to_be_visible()
    context.close()
