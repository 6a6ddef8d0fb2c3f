"""Compare and evaluation pages in Chromium: keys, swaps, addresses, axe, 360 px."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.specs.jobs import JobState
from app.web.deps import Services
from tests.support import made_rows
from tests.support.browser import look
from tests.support.made_evaluations import World

HOME = "/projects/support-router"
LONG = "a-name-that-somebody-typed-in-one-go-" * 2
EVIL = '<script>window.ran = 1</script><img src=x onerror="window.ran = 1">'
pytestmark = pytest.mark.browser


@pytest.fixture
def report(parts: Services, tmp_path: Path) -> int:
    """Three runs that have ended; returns the id of the first one's evaluation."""
    with parts.sessions.begin() as session:
        world = World.make(session, parts.settings, tmp_path)
        world.ids = {5: made_rows.conversations()[5].id}
        for name, alpha, right in (("kd", 0.7, 90), (LONG, 0.7, 85), ("seq", 0.0, 60)):
            run = world.start(name, alpha)
            world.anchors()
            world.answers = {5: EVIL} if name == "kd" else {}
            world.finish(run, right)
            for metric in ("train/kd_loss", "train/ce_loss"):
                if alpha or metric == "train/ce_loss":
                    world.curve(run, metric, [2.0, 1.0, 0.5])
        (first,) = world.runs("kd")
        return world.of_run(first).id


def test_recipes_over_seeds(parts: Services, tmp_path: Path, page: Page) -> None:
    with parts.sessions.begin() as session:
        world = World.make(session, parts.settings, tmp_path)
        for seed, (kd, labels) in enumerate([(95, 60), (94, 58), (96, 63)]):
            for name, alpha, right in (("kd", 0.7, kd), (LONG, 0.0, labels)):
                run = world.start(f"{name[:60]}, seed {seed}", alpha, seed=seed)
                world.anchors()
                world.finish(run, right)
    page.goto(f"{HOME}/compare")
    card = page.get_by_role("region", name="Over seeds")
    expect(card.locator("tbody tr")).to_have_count(4)
    look(page)
    # Another baseline is another one over seeds too.
    page.get_by_role("link", name="#1 kd, seed 0").focus()
    page.keyboard.press("b")
    expect(card.locator("tbody tr").first).to_contain_text("kd (3 seeds)")


@pytest.mark.usefixtures("report")
def test_compare_by_keys_and_links(page: Page) -> None:
    page.goto(f"{HOME}/compare")
    rows = page.locator("tbody [data-row] th")
    expect(rows).to_have_count(5)
    look(page)

    heads = page.locator("thead th")
    few = heads.count()
    page.keyboard.press("d")
    expect(page).to_have_url(re.compile(r"\?diff=0$"))
    assert heads.count() > few
    page.keyboard.press("d")
    expect(heads).to_have_count(few)

    page.get_by_role("link", name="#3 seq").focus()
    page.keyboard.press("b")
    expect(rows.first).to_contain_text("seq")
    expect(page).to_have_url(re.compile("baseline=3"))
    page.get_by_role("link", name="KL to teacher").click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("KL to teacher")

    # Both runs of equal objective share an axis; without one of them there is no such chart.
    chart = page.locator("#c-train-ce_loss-0")
    expect(chart.locator(".u-series")).to_have_count(4)
    page.get_by_role("link", name=f"Remove {LONG}").click()
    expect(rows).to_have_count(4)
    expect(chart.locator(".u-series")).to_have_count(3)
    page.reload()
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("seq")

    page.select_option("#add-run", label=f"#2 {LONG}")
    page.get_by_role("button", name="Add").click()
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("seq")


def test_examples_by_keys_and_filters(page: Page, report: int) -> None:
    page.goto(f"{HOME}/evaluations")
    look(page)
    page.goto(f"{HOME}/evaluations/{report}")
    look(page)
    examples = page.locator("article.ex")
    expect(examples).to_have_count(20)
    page.keyboard.press("1")
    expect(page).to_have_url(re.compile("outcome=losses"))
    expect(examples).to_have_count(6)
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(examples.nth(1).locator("a").first).to_be_focused()
    page.keyboard.press("3")
    expect(page.locator("#examples")).to_contain_text("1 to 20 of 94")
    page.get_by_role("link", name="Next →").click()
    expect(page.locator("#examples")).to_contain_text("21 to 40 of 94")
    page.fill("#examples input[type=search]", "onerror")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#examples")).to_contain_text("No example is left")
    page.get_by_role("link", name="Drop the filters").click()
    page.fill("#examples input[type=search]", "onerror")
    page.get_by_role("button", name="Show").click()
    expect(examples).to_have_count(1)
    address = page.url
    link = page.get_by_role("link", name="Whole prompt")
    link.focus()
    page.keyboard.press("Enter")
    whole = page.locator("details.whole")
    expect(whole).to_contain_text("Whole prompt: 1 message")
    expect(whole.locator(".msg")).to_contain_text("Where is my parcel 5")
    expect(whole.locator("summary").first).to_be_focused()
    assert page.url == address
    look(page)
    page.keyboard.press("Enter")
    expect(whole.locator(".msg")).to_be_hidden()
    assert page.evaluate("window.ran") is None


@pytest.fixture
def world(parts: Services, tmp_path: Path) -> Iterator[World]:
    """A run that waits, and the teacher's evaluation, which failed."""
    with parts.sessions() as session:
        world = World.make(session, parts.settings, tmp_path)
        world.start("kd")
        (teacher,) = (e for e in world.all_evaluations() if e.role == "teacher")
        made_rows.bring_to(session, teacher.job_id or 0, JobState.RUNNING)
        made_rows.bring_to(session, teacher.job_id or 0, JobState.FAILED, message="No memory.")
        session.commit()
        yield world


def test_a_failed_report_is_tried_again_and_a_waiting_one_comes_by_itself(
    page: Page, world: World
) -> None:
    (run,) = world.runs("kd")
    (failed,) = (e for e in world.all_evaluations() if e.role == "teacher")
    page.goto(f"{HOME}/evaluations/{failed.id}")
    look(page)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#report")).to_contain_text("Not evaluated yet")
    page.goto(f"{HOME}/evaluations/{world.of_run(run).id}")
    look(page)
    page.evaluate("window.stays = 1")
    world.session.expire_all()
    world.anchors()
    world.finish(run, 90)
    world.session.commit()
    examples = page.locator("article.ex")
    expect(examples).to_have_count(20, timeout=15_000)
    assert page.evaluate("window.stays") == 1
    page.keyboard.press("1")
    expect(page).to_have_url(re.compile("outcome=losses"))
    expect(examples).to_have_count(5)
