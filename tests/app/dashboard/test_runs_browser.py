"""The pages of runs in Chromium: a live page that survives a reload, and the form that answers."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.hooks import take_signals
from app.events.append import add_points, append
from app.jobs.models import Job
from app.jobs.nudge import Broker
from app.projects.models import Project
from app.specs.jobs import JobKind, JobState
from app.specs.preview import PreviewedConversation, PreviewPiece, RenderPreview
from app.web.deps import Services
from tests.app.dashboard.conftest import Workshop
from tests.support import made_rows
from tests.support.browser import NARROW, look

pytestmark = pytest.mark.browser
RUNS = "/projects/support-router/runs"
EVIL = "<script>window.ran = 1</script>"
POINTS = "JSON.parse(document.querySelector('#chart-kl').dataset.series)[0].points.length"
TWIN_ROWS = "#chart-kl-twin tbody tr"
SHOWN = "document.querySelectorAll('#chart-kl-twin tbody tr').length"
KEEP_PLOTS = """let made; window.plots = {};
Object.defineProperty(window, "uPlot", { get: () => made, set: (plain) => { made = new Proxy(plain, {
  construct: (target, given) => window.plots[given[2].closest("[data-chart]").id] = new target(...given),
}); } });"""
PLOT = """((id) => { const u = plots[id]; return {
  log: u.scales.y.distr === 3, labels: u.series.slice(1).map((s) => s.label), data: u.data,
}; })"""
"""What uPlot was given, since a canvas cannot be read."""
Write = Callable[[Session], None]


class Worker:
    """Writes what a worker would, and wakes who looks on."""

    def __init__(self, parts: Services, job_id: int) -> None:
        self.parts, self.job_id = parts, job_id
        self.broker = Broker(str(parts.settings.redis_url))

    def write(self, write: Write) -> None:
        with self.parts.sessions() as session:
            write(session)
            session.commit()
            self.broker.send(take_signals(session))

    def steps(self, first: int, last: int) -> None:
        def write(session: Session) -> None:
            values = {
                n: {"train/kd_loss": 1 / n, "train/loss": 2 / n} for n in range(first, last + 1)
            }
            add_points(session, "run:1", job_id=self.job_id, fence=1, steps=values)
            progress = {"done": last, "total": 150, "unit": "steps", "eta_seconds": 60.0}
            session.get_one(Job, self.job_id).progress = progress
            append(session, "run:1", "progress", progress, job_id=self.job_id)
            line = {"level": "info", "text": f"step {last} is done"}
            append(session, "run:1", "log", line, job_id=self.job_id)

        self.write(write)


@pytest.fixture
def worker(parts: Services, workshop: Workshop) -> Iterator[Worker]:
    """A run whose training is at step 10."""
    workshop.start()
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    found = Worker(parts, workshop.bring(1, "train", JobState.RUNNING))
    found.steps(1, 10)
    yield found
    found.broker.close()


def test_a_live_run_goes_on_after_a_reload(page: Page, worker: Worker, workshop: Workshop) -> None:
    page.goto(f"{RUNS}/1")
    page.click("#chart-kl [data-chart-twin]")
    assert page.evaluate(POINTS) == page.evaluate(SHOWN) == 10
    worker.steps(11, 25)
    expect(page.locator("[data-live-log]")).to_contain_text("step 25 is done")
    expect(page.locator("[data-live-progress]")).to_contain_text("25 of 150 steps")
    expect(page.locator(TWIN_ROWS)).to_have_count(25)
    page.reload()
    assert page.evaluate(POINTS) == 25
    assert page.locator("[data-live-log]").inner_text().count("step 25 is done") == 1
    page.click("#chart-kl [data-chart-twin]")
    worker.steps(26, 30)
    expect(page.locator(TWIN_ROWS)).to_have_count(30)
    look(page)
    workshop.bring(1, "train", JobState.SUCCEEDED)
    worker.write(
        lambda s: append(s, "run:1", "state", {"state": "succeeded"}, job_id=worker.job_id)
    )
    expect(page.locator("#run-live [aria-current=step]")).to_contain_text("Evaluate")
    # The curves were not touched by the swap of the part above them.
    assert page.evaluate(SHOWN) == 30


def test_the_axis_is_logarithmic_and_curves_are_smoothed_when_asked_for(
    page: Page, worker: Worker
) -> None:
    page.add_init_script(KEEP_PLOTS)

    def learn(session: Session) -> None:
        rates = {n: {"optim/learning_rate": 0.0 if n == 1 else 0.1 / n} for n in range(1, 11)}
        add_points(session, "run:1", job_id=worker.job_id, fence=1, steps=rates)

    worker.write(learn)
    page.goto(f"{RUNS}/1")
    plain = page.evaluate(PLOT + "('chart-kl')")
    assert (plain["log"], plain["labels"]) == (False, ["KD loss", "Validation KL"])
    axis, smooth = (page.get_by_role("button", name=name) for name in ("Log axis", "Smooth"))
    axis.focus()
    page.keyboard.press("Enter")
    expect(axis).to_have_attribute("aria-pressed", "true")
    assert page.evaluate(PLOT + "('chart-kl')") == {**plain, "log": True}
    kl, rate = (page.locator(f"#chart-{key} [data-chart-note]") for key in ("kl", "rate"))
    expect(kl).to_have_text("logarithmic axis")
    expect(rate).to_have_text("logarithmic axis; 1 value of 0 or less not drawn")
    smooth.press("Space")
    page.reload()
    for button in (axis, smooth):
        expect(button).to_have_attribute("aria-pressed", "true")
    both = page.evaluate(PLOT + "('chart-kl')")
    assert both["labels"] == [*plain["labels"], "KD loss, smooth", "Validation KL, smooth"]
    assert both["data"][1] == plain["data"][1]
    # .9 and .1 of the two first values, 1 and 1/2, by their weights.
    assert both["data"][3][:2] == pytest.approx([1, (0.09 + 0.05) / 0.19])
    look(page)
    page.click("#chart-kl [data-chart-twin]")
    assert "smooth" not in page.locator("#chart-kl-twin").inner_text()
    worker.steps(11, 12)
    expect(page.locator(TWIN_ROWS)).to_have_count(12)
    assert len(page.evaluate(PLOT + "('chart-kl')")["data"][3]) == 12
    axis.click()
    smooth.click()
    assert page.evaluate(PLOT + "('chart-kl')")["labels"] == plain["labels"]
    expect(kl).to_be_hidden()


def test_a_run_is_stopped_from_its_dialog(page: Page, worker: Worker) -> None:
    page.goto(f"{RUNS}/1")
    page.click("[data-open=stop]")
    expect(page.get_by_role("button", name="Go on")).to_be_focused()
    look(page)
    page.check("dialog input[value=discard]")
    page.get_by_role("button", name="Stop the run").click()
    expect(page.locator("#run-live .st-cancelling").first).to_be_visible()
    with worker.parts.sessions() as session:
        assert session.get_one(Job, worker.job_id).cancel_mode == "discard"


@pytest.mark.usefixtures("workshop")
def test_the_form_answers_what_is_chosen(page: Page) -> None:
    page.goto(f"{RUNS}/new")
    look(page)
    page.check("#role-labels_only")
    expect(page.locator("#f-name")).to_have_value("labels-only")
    expect(page.locator("#role-labels_only")).to_be_focused()
    page.check("#preset-fast")
    expect(page.locator("#f-steps")).to_have_value("20")
    page.check("#role-distilled")
    expect(page.locator("#f-temperature")).to_have_value("1")
    start = page.locator("#before .btn-primary")
    page.fill("#f-temperature", "3")
    expect(page.locator("#blocked")).to_contain_text("is not in the cache's grid")
    expect(page.locator("#f-temperature")).to_be_focused()
    expect(start).to_be_disabled()
    look(page)
    page.click("text=Use temperature 1")
    expect(page.locator("#f-temperature")).to_have_value("1")
    expect(start).to_be_enabled()
    page.check("#also-sequence_level")
    page.check("#also-labels_only")
    expect(start).to_have_text("Start 3 runs")
    start.click()
    page.wait_for_url("**/runs?group=*")
    expect(page.locator("[data-row]")).to_have_count(3)
    look(page)


@pytest.mark.usefixtures("workshop")
def test_the_form_keeps_what_is_chosen_and_open(page: Page) -> None:
    page.goto(f"{RUNS}/new")
    fold = page.locator("#fold-schedule")
    fold.locator("summary").click()
    page.fill("#f-steps", "many")
    page.fill("#f-batch_size", "0")
    expect(page.locator("#f-steps-e")).to_have_text("Must be a whole number.")
    expect(page.locator("#f-batch_size-e")).to_have_text("Must be at least 1.")
    expect(fold).to_have_attribute("open", "")
    fold.locator("summary").click()
    page.click("#blocked a[href='#f-batch_size']")
    expect(page.locator("#f-batch_size")).to_be_focused()
    expect(fold).to_have_attribute("open", "")
    page.check("#preset-thorough")
    expect(page.locator("#f-steps")).to_have_value("400")
    page.check("#role-labels_only")
    expect(page.locator("#f-name")).to_have_value("labels-only")
    expect(page.locator("#also-distilled")).to_be_visible()
    expect(fold).to_have_attribute("open", "")
    page.check("#also-distilled")
    page.locator("#fold-evaluation summary").click()
    page.select_option("#f-split", "validation")
    expect(page.locator("#before .btn-primary")).to_have_text("Start 2 runs")
    page.wait_for_url("**split=validation**")
    page.reload()
    expect(page.locator("#role-labels_only")).to_be_checked()
    expect(page.locator("#preset-thorough")).to_be_checked()
    expect(page.locator("#also-distilled")).to_be_checked()
    page.fill("#f-name", "mine")
    page.wait_for_url("**name=mine**")
    page.click("#before .btn-primary")
    page.wait_for_url("**/runs?group=*")
    page.go_back()
    expect(page.locator("#f-name")).to_have_value("mine")
    expect(page.locator("#f-split")).to_have_value("validation")
    expect(page.locator("#also-distilled")).to_be_checked()
    expect(page.locator("#blocked")).to_contain_text("is called “mine” already")
    page.click("text=Call it “mine-2”")
    expect(page.locator("#f-name")).to_have_value("mine-2")
    look(page)
    page.set_viewport_size(NARROW)  # type: ignore[arg-type] # a ViewportSize
    label, words = (page.locator(f"#before .times {tag}").first for tag in ("dt", "dd"))
    boxes = [part.bounding_box() or {} for part in (label, words)]
    assert boxes[0]["x"] == boxes[1]["x"], "the estimate is stacked"


@pytest.mark.usefixtures("workshop")
def test_a_mend_moves_what_a_person_has_touched(page: Page, parts: Services) -> None:
    """Boxes and options that were clicked do not follow the attributes that a morph sets."""
    with parts.sessions.begin() as session:
        project = session.get_one(Project, 1)
        made_rows.checkpoint(session, project, "llama", tokenizer_fingerprint="f" * 64)
    name, student = page.locator("#f-name"), page.locator("#f-student_id option:checked")
    page.goto(f"{RUNS}/new")
    page.check("#role-sequence_level")
    expect(name).to_have_value("sequence-level")
    page.check("#role-distilled")
    expect(name).to_have_value("distilled")
    page.select_option("#f-student_id", label="llama")
    page.click("text=Use sequence-level")
    expect(name).to_have_value("sequence-level")
    expect(page.locator("#role-sequence_level")).to_be_checked()
    expect(student).to_have_text("llama")
    page.select_option("#f-student_id", label="teacher")
    page.select_option("#f-student_id", label="student")
    page.check("#role-fine_tune")
    expect(name).to_have_value("tuned")
    expect(student).to_have_text("teacher")


def test_the_table_filters_while_one_types(page: Page, workshop: Workshop) -> None:
    workshop.start("alpha", group="g1")
    workshop.start("beta", group="g2")
    page.goto(RUNS)
    page.fill("#search", "bet")
    expect(page.locator("[data-row]")).to_have_count(1)
    assert "search=bet" in page.url
    page.reload()
    expect(page.locator("[data-row]")).to_have_count(1)
    page.fill("#search", "nothing")
    page.click("text=Drop search")
    page.wait_for_url(lambda address: "search" not in address)
    expect(page.locator("[data-row]")).to_have_count(2)
    page.select_option("#group", "g1")
    expect(page.locator("[data-row]")).to_have_count(1)


@pytest.mark.usefixtures("workshop")
def test_what_is_learned_is_shown_and_the_form_is_found_again(page: Page, parts: Services) -> None:
    page.goto(f"{RUNS}/new")
    page.locator("#fold-schedule summary").click()
    page.fill("#f-seed", "0, 1, 2")
    expect(page.locator("#before")).to_contain_text("Start 3 runs")
    page.get_by_role("button", name="See what is learned").click()
    expect(page.locator("#preview")).to_contain_text("A worker renders the conversations")
    with parts.sessions.begin() as session:
        job = session.scalars(select(Job).where(Job.kind == JobKind.PREVIEW)).one()
        shown = RenderPreview(
            looked_at=200,
            skipped={"too_long": 3},
            first_error="Its last turn alone is longer than 64 tokens. Raise max_tokens.",
            cut=1,
            tokens=60,
            learned=11,
            shown=(
                PreviewedConversation(
                    conversation_id="c1",
                    tokens=60,
                    learned=11,
                    cut_messages=2,
                    pieces=(
                        PreviewPiece(text="<|user|>\n" + EVIL * 9, learned=False, tokens=49),
                        PreviewPiece(text="Yes." + "x" * 200, learned=True, tokens=11),
                    ),
                ),
            ),
        )
        made_rows.bring_to(session, job.id, JobState.SUCCEEDED)
        job.result = shown.model_dump(mode="json")
    expect(page.locator("#preview")).to_contain_text("18.3 % of the tokens are learned: 11 of 60.")
    expect(page.locator("#preview")).to_contain_text(
        "3 conversations left out: its last turn alone"
    )
    look(page)
    assert page.evaluate("window.ran") is None
    page.get_by_role("link", name="Back to the form").click()
    expect(page.locator("#before")).to_contain_text("Start 3 runs")
