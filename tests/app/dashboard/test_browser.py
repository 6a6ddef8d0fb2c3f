"""Projects, checkpoints and queue in Chromium: every state, live parts, dialogs, narrow and dark."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select
from starlette.testclient import TestClient

from app.jobs import lease
from app.jobs.models import Job
from app.projects import service
from app.specs.checkpoint import PruneSpec
from app.specs.jobs import JobKind, JobState, Queue
from app.specs.pruning import pruned_card
from app.web.deps import Services
from tests.support import seeds
from tests.support.browser import look, serving, signed_in_page

pytestmark = pytest.mark.browser
HOME = "/projects/routing"
REFUSED = "status of 422"
"""A refused form answers 422, which the console calls a failure."""
WOKEN = 15_000
"""Milliseconds until a stream is read without a broker that wakes it: it looks every 5 s."""


@pytest.fixture
def page(browser: Browser, app: FastAPI, signed_in: TestClient) -> Iterator[Page]:
    with (
        serving(app) as address,
        signed_in_page(browser, address, signed_in, allowed=REFUSED) as page,
    ):
        yield page


def fill(parts: Services) -> None:
    """One project with everything: verdict, runs, jobs of every state, hostile and long names."""
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        teacher = seeds.checkpoint(session, project, "a-teacher-with-a-very-long-name-" * 2)
        student = seeds.checkpoint(
            session,
            project,
            "small",
            card=pruned_card(seeds.CARD, PruneSpec(depth=6)),
            origin={"kind": "pruned", "teacher_id": teacher.id, "prune": {"depth": 6}},
        )
        seeds.checkpoint(session, project, "bad", card=None, error="The folder is gone. " * 8)
        service.use_as(session, project, "teacher", teacher.id)
        service.use_as(session, project, "student", student.id)
        version = seeds.version(session, project)
        for number, (role, right) in enumerate((("labels_only", 150), ("distilled", 189)), 1):
            run = seeds.run(session, project, number, name=role, role=role, group="g")
            seeds.evaluation(
                session, project, version.id, role=role, name=role, right=right, run_id=run.id
            )
        seeds.evaluation(session, project, version.id, role="teacher", name="teacher", right=190)
        seeds.run(session, project, 3, name="bad", state=JobState.FAILED)
        seeds.job(session, project, JobState.QUEUED, title=seeds.EVIL)
        seeds.job(
            session, project, JobState.RUNNING, kind=JobKind.TRAIN, title="Train it", stream="run:9"
        )
        seeds.project(session, seeds.EVIL)


def test_pages_are_accessible_narrow_and_dark(page: Page, parts: Services) -> None:
    for path in ("/projects", "/queue"):
        page.goto(path)
        look(page)
    fill(parts)
    for path in (
        "/projects",
        "/projects?search=zzz",
        HOME,
        f"{HOME}/edit",
        "/queue",
        f"{HOME}/checkpoints",
        f"{HOME}/checkpoints/1",
        f"{HOME}/checkpoints/2",
        f"{HOME}/checkpoints/3",
        f"{HOME}/checkpoints/new",
        f"{HOME}/checkpoints/new?way=prune",
        "/projects/new",
    ):
        page.goto(path)
        look(page)


def test_the_home_and_the_queue_follow_the_work_by_themselves(page: Page, parts: Services) -> None:
    fill(parts)
    with parts.sessions.begin() as session:
        job = session.scalar(select(Job).where(Job.title == "Train it"))
        assert job is not None
        held = lease.Claim(job.id, job.fence or 0, job.kind, job.spec, job.stream, 1, ())
    page.goto(HOME)
    jobs = page.get_by_role("region", name="Open jobs, table")
    expect(jobs).to_contain_text("Train it")
    page.locator("main a", has_text="Compare").first.focus()
    with parts.sessions.begin() as session:
        lease.set_phase(session, held, "train")
        lease.set_progress(session, held, {"done": 512, "total": 1024, "unit": "steps"})
    expect(jobs).to_contain_text("512 of 1,024 steps")
    assert page.evaluate("document.activeElement.textContent").strip() == "Compare", "focus stays"
    page.goto("/queue")
    expect(page.locator("#queue")).to_contain_text("512 of 1,024 steps")
    with parts.sessions.begin() as session:
        lease.succeed(session, held, {})
    expect(page.get_by_role("region", name="Ended jobs")).to_contain_text("Train it")


def test_the_stop_dialog_outlives_updates_and_stays_closed(page: Page, parts: Services) -> None:
    fill(parts)
    page.goto("/queue")
    page.get_by_role("link", name="Stop Train it").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("Keep what it has")
    expect(dialog.get_by_role("button", name="Let it go on")).to_be_focused()
    with page.expect_response(lambda answer: answer.url.endswith("/queue")):
        pass  # an update of the list behind the dialog
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    with page.expect_response(lambda answer: answer.url.endswith("/queue")):
        pass
    expect(dialog).to_have_count(0)
    page.get_by_role("link", name="Stop Train it").click()
    page.get_by_label("Discard it").check()
    page.get_by_role("button", name="Stop the job").click()
    expect(page.locator("#queue")).to_contain_text("Stopping; nothing is kept.")


def test_the_gauge_moves_with_the_sizes_and_the_sources_with_the_choice(
    page: Page, parts: Services
) -> None:
    fill(parts)
    page.goto(f"{HOME}/checkpoints/new?way=prune")
    expect(page.locator("#gauge")).to_contain_text("5.0×")
    page.fill("#f-depth", "15")
    expect(page.locator("#gauge")).to_contain_text("Outside the band")
    page.fill("#f-depth", "3")
    expect(page.locator("#gauge")).to_contain_text("10.0×")
    assert page.input_value("#f-depth") == "3"
    page.goto("/projects/new")
    expect(page.locator("#f-path")).to_be_hidden()
    teacher = page.get_by_role("region", name="Teacher")
    teacher.get_by_label("A hub repository").check()
    expect(page.locator("#f-repo_id")).to_be_visible()
    expect(page.locator("#f-path")).to_be_hidden()
    expect(page.locator("#f-student_repo_id")).to_be_hidden()
    teacher.get_by_label("A folder on this machine").check()
    expect(page.locator("#f-path")).to_be_visible()
    expect(page.locator("#f-student_path")).to_be_hidden()
    page.fill("#f-name", "Tickets")
    page.get_by_role("button", name="Make the project").click()
    expect(page.get_by_role("alert")).to_be_focused()  # the folder is missing
    page.fill("#f-path", "/models/big")
    page.get_by_role("button", name="Make the project").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Tickets")
    expect(page.locator(".next")).to_contain_text("Upload a log")


def test_a_checkpoint_is_followed_to_its_end(page: Page, parts: Services) -> None:
    page.goto("/projects/new")
    page.fill("#f-name", "Routing")
    page.get_by_role("region", name="Teacher").get_by_label("A hub repository").check()
    page.fill("#f-repo_id", "owner/big")
    page.get_by_role("button", name="Make the project").click()
    page.locator(".pipe a", has_text="big").click()
    expect(page.locator("#facts")).to_contain_text("Being handed to a worker.")
    with parts.sessions.begin() as session:
        held = lease.claim(session, Queue.CPU, worker="w", host="h", lease_seconds=60)
        assert held is not None
        lease.running(session, held)
        lease.set_phase(session, held, "download")
    expect(page.locator("#facts")).to_contain_text("download", timeout=WOKEN)
    with parts.sessions.begin() as session:
        lease.set_progress(session, held, {"done": 3 << 20, "total": 4 << 20, "unit": "bytes"})
    expect(page.locator("[data-progress-text]")).to_contain_text(
        "3.0 MiB of 4.0 MiB", timeout=WOKEN
    )
    with parts.sessions.begin() as session:
        lease.fail(session, held, seeds.failure("The hub could not be reached for owner/big."))
    expect(page.locator("#facts")).to_contain_text("It could not be made.", timeout=WOKEN)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#facts")).to_contain_text("Being handed to a worker.")


def test_removing_a_checkpoint_is_asked_back(page: Page, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        row = seeds.checkpoint(session, project, "taecher", card=None, error="/x is not there.")
        service.use_as(session, project, "teacher", row.id)
    page.goto(f"{HOME}/checkpoints/{row.id}")
    look(page)
    remove = page.get_by_role("button", name="Remove", exact=True)
    remove.click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("The project then has no teacher")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_have_count(0)
    remove.click()
    dialog.get_by_role("button", name="Remove the checkpoint").click()
    expect(page.locator("main")).to_contain_text("No checkpoints yet")
