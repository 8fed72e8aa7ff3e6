"""The page at /tuning in a real browser, against scripted jobs: what users do, and that everybody can do it.

Needs playwright (pip), Debian's chromium, and axe-playwright-python (pip), which has axe-core.
"""

import re
import shutil
import socket
import threading
from importlib import resources
from pathlib import Path

import pytest
import uvicorn
from page_world import BAD_LINE, EXCEL, World, fill, running, succeeded, sweep_trials

from raytune_llm.service.records import State

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,  # a browser
    pytest.mark.skipif(CHROMIUM is None, reason="chromium isn't installed"),
]
expect = sync_api.expect

GOOD = b'{"prompt": "a", "completion": "b"}\n' * 1000
BAD = f'{{"a": 1}}\n{BAD_LINE}\n{{}}\n{BAD_LINE}\n'.encode()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SHIFTS = """new Promise(resolve => { let sum = 0;
new PerformanceObserver(list => { for (const one of list.getEntries()) if (!one.hadRecentInput) sum += one.value; })
.observe({type: 'layout-shift', buffered: true}); setTimeout(() => resolve(sum), 200); })"""


class Server(uvicorn.Server):
    """A world's app at a free port, in a thread."""

    def __init__(self, world: World) -> None:
        super().__init__(uvicorn.Config(world.app, log_level="warning", lifespan="off"))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> str:
        self._thread.start()
        return self.address

    def __exit__(self, *error: object) -> None:
        self.should_exit = self.force_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home")
    yield made
    made.is_check_held = False
    made.checks.close()


@pytest.fixture
def page(browser, world):
    """A page that has never broken its policy or thrown when the test ends."""
    with Server(world) as address:
        context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 860}, accept_downloads=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened = context.new_page()
        wrong = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
        opened.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        yield opened
        context.close()
        assert not wrong


def upload(page, name, content, where="#training"):
    page.set_input_files(where, files=[{"name": name, "mimeType": "application/jsonl", "buffer": content}])


def open_job(page, job):
    page.goto(f"/tuning#/jobs/{job.request.id}")
    expect(page.locator("article h1")).to_be_visible()


def violations(page):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python isn't installed")
    page.evaluate(resources.files(axe).joinpath("axe.min.js").read_text())
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)["violations"]
    return [(one["id"], [node["target"] for node in one["nodes"]]) for one in found]


def test_the_first_step_is_explained(page):
    page.goto("/tuning")
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "client.fine_tuning.jobs.create" in copied and page.url.split("/tuning")[0] + "/v1" in copied
    assert not violations(page)
    page.get_by_role("link", name="Start with a JSONL file").click()
    expect(page.get_by_role("heading", name="New job")).to_be_visible()
    expect(page.get_by_role("button", name="Start tuning")).to_be_disabled()


def test_from_a_file_to_a_job(page, world):
    page.goto("/tuning#/new")
    world.is_check_held = True
    upload(page, "tickets.jsonl", GOOD)
    expect(page.get_by_text("Checking the file …")).to_be_visible()
    world.is_check_held = False
    expect(page.get_by_text("Usable, with 1 warning")).to_be_visible()
    expect(page.get_by_text("tickets.jsonl:17").first).to_be_visible()
    expect(page.locator(".cost")).to_contain_text("9 trials")
    assert not violations(page)
    for name, value in (("n-epochs", "2"), ("batch-size", "8"), ("learning-rate-multiplier", "1.5")):
        page.select_option(f"#{name}-mode", "value")
        page.fill(f"#{name}", value)
        page.locator(f"#{name}").blur()
    expect(page.locator(".cost")).to_contain_text("1 trial ·")
    page.fill("#suffix", "tickets")
    page.get_by_role("button", name="Start tuning").click()
    expect(page.locator("article h1")).to_have_text("tickets")
    expect(page.locator("article .chip")).to_have_text("checking files")
    [job] = world.controller.all.values()
    assert job.request.hyperparameters == {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.5}
    world.controller.move(job.request.id, State.queued)
    expect(page.locator("article .chip")).to_have_text("queued")
    expect(page.locator("#announcer")).to_have_text("The job is now queued")


def test_a_file_can_be_dropped(page):
    page.goto("/tuning#/new")
    expect(page.locator("form.new")).to_be_visible()
    page.evaluate(
        """() => { const data = new DataTransfer();
        data.items.add(new File(['{"a": 1}\\n'.repeat(30)], 'dropped.jsonl'));
        document.querySelector('.drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true})); }"""
    )
    expect(page.get_by_text("dropped.jsonl:17").first).to_be_visible()


def test_problems_are_shown_with_their_lines_and_nothing_can_start(page):
    page.goto("/tuning#/new")
    upload(page, EXCEL, BAD)
    expect(page.locator(".finding.problem")).to_have_count(2)
    expect(page.locator(".finding.problem .where").nth(1)).to_have_text(f"{EXCEL}:4")
    expect(page.get_by_role("button", name="Start tuning")).to_be_disabled()
    assert page.locator("img").count() == 0 and not violations(page)
    upload(page, "better.jsonl", GOOD)
    expect(page.get_by_text("Usable, with 1 warning")).to_be_visible()
    expect(page.get_by_role("button", name="Start tuning")).to_be_enabled()


def test_a_file_that_is_too_large_is_not_sent(page, world):
    page.goto("/tuning#/new")
    upload(page, "large.jsonl", b"x" * 1_000_001)
    expect(page.locator(".drop .error").first).to_contain_text("at most")
    assert not world.store.files()


def test_a_refusal_is_shown_and_the_form_stays(page):
    page.goto("/tuning#/new")
    upload(page, "tickets.jsonl", GOOD)
    expect(page.locator(".cost")).to_contain_text("9 trials")
    page.fill("#suffix", "refused")
    page.get_by_role("button", name="Start tuning").click()
    expect(page.locator(".start .error")).to_have_text("this key has 100 unfinished jobs")
    expect(page.locator("#suffix")).to_have_value("refused")


def test_the_list_shows_each_state_and_moves_in_place(page, world):
    jobs = fill(world)
    page.goto("/tuning")
    expect(page.locator(".jobs li")).to_have_count(len(jobs))
    expect(page.locator("li", has_text="tickets").locator(".state")).to_contain_text("place 3 in the queue")
    expect(page.locator("li", has_text="broken").locator(".state")).to_contain_text("3 problems in the data")
    expect(page.locator("#usage")).to_contain_text("1 running · 2 waiting")
    link = page.get_by_role("link", name="tickets")
    link.focus()
    world.controller.move(jobs["queued"].request.id, State.running)
    expect(page.locator("li", has_text="tickets").locator(".chip")).to_have_text("running")
    expect(link).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("tickets: running")
    assert not violations(page)
    assert page.evaluate(SHIFTS) < 0.02


def test_a_hidden_tab_asks_nothing(page, world):
    fill(world)
    page.goto("/tuning")
    expect(page.locator(".jobs li")).to_have_count(8)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    asked = []
    page.wait_for_timeout(2500)  # the poll that was planned passes
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(5000)
    assert not asked
    with page.expect_request(re.compile("/tuning/api/jobs")):
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_running_sweeps_curves_grow(page, world):
    job = running(world, 60)
    open_job(page, job)
    expect(page.locator(".line.best")).to_have_count(2)
    expect(page.locator("figure").first.locator(".line")).to_have_count(9)
    before = page.locator("figure").nth(1).locator(".line.best").get_attribute("d")
    assert not violations(page)
    world.runs[job.request.id].shown = sweep_trials(150)
    expect(page.locator("figure").nth(1).locator(".line.best")).not_to_have_attribute("d", before)
    chart = page.locator(".chart").first
    chart.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".readout").first).to_have_text(
        re.compile(r"trial 8 \(rate ×3, rank 16\) · step 50 · eval/loss ")
    )
    chart.blur()
    page.locator("figure").nth(1).hover()
    expect(page.locator(".readout").nth(1)).to_contain_text("train/loss")
    page.get_by_role("button", name="rate ×1, rank 4").click()
    expect(page.get_by_role("button", name="rate ×1, rank 4")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".board .picked")).to_contain_text("trial 4")
    page.select_option("#metric", "eval/token_accuracy")
    expect(page.locator("figure h3").first).to_have_text("eval/token_accuracy")
    page.get_by_label("log scale").nth(1).check()
    assert page.evaluate(SHIFTS) < 0.1


@pytest.mark.parametrize("count", [1, 64])
def test_few_and_many_trials_are_drawn(page, world, count):
    job = running(world, 200, count)
    open_job(page, job)
    expect(page.locator("figure").first.locator(".line")).to_have_count(count)
    expect(page.locator(".legend button")).to_have_count(count)
    assert not violations(page)


def test_the_leaderboard_sorts_by_any_column(page, world):
    open_job(page, succeeded(world, "support", 60, is_named=True))
    first = page.locator(".board tbody tr").first
    expect(first).to_contain_text("trial 2")
    page.get_by_role("button", name="learning rate multiplier").press("Enter")
    expect(page.locator(".board th[aria-sort=ascending]")).to_have_count(1)
    expect(first.locator("td").nth(2)).to_have_text("0.3")
    page.keyboard.press("Enter")
    expect(first.locator("td").nth(2)).to_have_text("3")
    expect(page.get_by_role("button", name="learning rate multiplier")).to_be_focused()


def test_a_finished_job_has_verdict_files_and_command(page, world):
    job = succeeded(world, "support", 60, is_named=True)
    open_job(page, job)
    expect(page.locator(".verdict.sound")).to_contain_text("support@3")
    page.locator("summary", has_text="Data check").click()
    expect(page.get_by_text("support.jsonl:17").first).to_be_visible()
    for name, content in (
        ("Data report", "<!doctype html>"),
        ("Evaluation report", "# support@3"),
        ("Result metrics (CSV)", "step"),
    ):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        assert Path(download.value.path()).read_text().startswith(content)
    page.locator("section", has=page.get_by_role("heading", name="Command")).get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("raytune-llm sweep home=")
    assert not violations(page)


def test_tuned_and_base_answer_next_to_each_other(page, world):
    open_job(page, succeeded(world, "support", 60, is_named=True))
    page.fill("#prompt", "Is Amy sarcastic?")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".answer").first).to_have_text("<b>sincere</b>")
    expect(page.locator(".answer").nth(1)).to_have_text("I am not sure.")
    expect(page.get_by_role("button", name="Ask both")).to_be_enabled()


def test_a_job_that_did_not_win_says_so(page, world):
    open_job(page, succeeded(world, "support", 60, is_named=False))
    expect(page.locator(".verdict.warning")).to_contain_text("No model was named")


def test_a_failed_job_names_the_lines(page, world):
    open_job(page, fill(world)["failed"])
    expect(page.locator(".verdict.problem li")).to_have_count(3)
    expect(page.locator(".verdict.problem li").nth(2)).to_contain_text(":208:")
    expect(page.locator(".buttons button")).to_have_count(0)


def test_pause_resume_and_cancel_by_keyboard_alone(page, world):
    job = running(world)
    open_job(page, job)
    page.get_by_role("button", name="Pause").press("Enter")
    expect(page.get_by_role("button", name="Keep as it is")).to_be_focused()
    page.keyboard.press("Enter")
    assert world.controller.all[job.request.id].status.state is State.running
    page.get_by_role("button", name="Pause").press("Enter")
    page.get_by_role("button", name="Pause the job").press("Enter")
    expect(page.locator("article .chip")).to_have_text("paused")
    page.get_by_role("button", name="Resume").press("Enter")
    expect(page.locator("article .chip")).to_have_text("running")
    page.get_by_role("button", name="Cancel").press("Enter")
    assert not violations(page)
    page.get_by_role("button", name="Cancel the job").press("Enter")
    expect(page.locator("article .chip")).to_have_text("cancelled")
    expect(page.locator("article .buttons").first.locator("button")).to_have_count(0)


def test_texts_of_users_and_models_are_never_markup(page, world):
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    request = {"metadata": {markup: markup}, "model": markup}
    job = world.add(State.running, "x", 1, of_request=request, note=markup, lines=[("info", markup)])
    page.goto("/tuning")
    expect(page.locator(".jobs li")).to_contain_text("<img")
    open_job(page, job)
    expect(page.locator(".events li").first).to_contain_text(markup)
    expect(page.locator(".facts")).to_contain_text(markup)
    assert page.locator("main img, main script").count() == 0


def test_a_job_that_is_not_there(page):
    page.goto("/tuning#/jobs/ftjob-000000000000000000000000")
    expect(page.get_by_role("alert")).to_contain_text("no such job")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(page, world, scheme):
    page.set_viewport_size({"width": 360, "height": 780})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    jobs = fill(world)
    addresses = ["/tuning", "/tuning#/new", *(f"/tuning#/jobs/{job.request.id}" for job in jobs.values())]
    for address in addresses:
        page.goto("about:blank")
        page.goto(address)
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator(".jobs li, form.new, article h1").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), address
        assert not violations(page), address


def test_the_key_is_asked_for_and_kept_in_the_tab(browser, tmp_path):
    world = World(tmp_path, key="mine")
    fill(world)
    with Server(world) as address:
        page = browser.new_context(base_url=address).new_page()
        page.goto("/tuning")
        expect(page.get_by_label("Key")).to_be_focused()
        assert not violations(page)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That key is not valid here.")
        page.keyboard.type("mine")
        page.keyboard.press("Enter")
        expect(page.locator(".jobs li")).to_have_count(8)
        page.reload()
        expect(page.locator(".jobs li")).to_have_count(8)
        assert page.evaluate("Object.keys(localStorage)") == [] and page.context.cookies() == []
        page.get_by_role("button", name="Forget key").click()
        expect(page.get_by_label("Key")).to_be_visible()
        assert page.locator(".jobs li").count() == 0
        page.context.close()
    world.checks.close()


def test_a_service_that_is_away_is_reported_until_it_is_back(page, world):
    fill(world)
    page.goto("/tuning")
    expect(page.locator(".jobs li")).to_have_count(8)
    page.route("**/tuning/api/**", lambda route: route.abort())
    expect(page.locator("#offline")).to_be_visible(timeout=20_000)
    expect(page.locator(".jobs li")).to_have_count(8)
    page.unroute("**/tuning/api/**")
    expect(page.locator("#offline")).to_be_hidden(timeout=20_000)
