"""The data pages in Chromium, on real workers: send a log, look, import, read, freeze."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select

from app.datasets.models import Upload
from app.projects import service as projects
from app.projects.schemas import ProjectCreate
from app.web.deps import Services
from bench.made_logs import write_chat_log
from tests.app.datasets.test_pages import Made
from tests.support.browser import look
from tests.support.workers import working

JOB = 60_000
"""Milliseconds one job may take: each starts a Python process."""
HOME = "/projects/routing/datasets"
EVIL = "<script>window.ran=1</script><img src=x onerror='window.ran=1'>"
pytestmark = pytest.mark.browser


@pytest.fixture
def page(page: Page) -> Page:
    page.set_viewport_size({"width": 1280, "height": 900})
    return page


@pytest.mark.slow
def test_a_log_becomes_a_frozen_version(page: Page, parts: Services, tmp_path: Path) -> None:
    log = tmp_path / "traffic.jsonl"
    truth = write_chat_log(log, seed=5, dialogues=60, reference=True)
    with parts.sessions.begin() as session:
        projects.create(session, ProjectCreate(name="Routing"), owner_id=None)
    with working(parts.sessions, parts.settings):
        page.goto(HOME)
        expect(page.locator("main")).to_contain_text("No data yet")
        look(page)
        page.click("text=Import data")
        _send_and_choose(page, log)
        look(page)
        page.click("text=Start import")
        expect(page.locator("#funnel-t")).to_be_visible(timeout=JOB)
        table = page.locator("section[aria-labelledby=funnel-t]")
        skipped, bad = truth.skipped.total(), truth.quarantined.total()
        expect(table).to_contain_text(
            f"{truth.records} records = {truth.calls} calls + {truth.duplicates} duplicates"
            f" + {skipped} skipped + {bad} quarantined"
        )
        look(page)
        _read_rejects(page)
        _read_conversations(page)
        page.click("text=About this version")
        page.click("text=Freeze traffic v1")
        expect(page.locator("#facts-t + .cb, .cb")).to_contain_text(["Content hash"], timeout=JOB)
        expect(page.locator("h1")).to_contain_text("frozen")
        look(page)


def test_a_file_chosen_before_the_script_has_come_is_sent(
    page: Page, parts: Services, tmp_path: Path
) -> None:
    log = tmp_path / "traffic.jsonl"
    write_chat_log(log, seed=5, dialogues=3)
    with parts.sessions.begin() as session:
        projects.create(session, ProjectCreate(name="Routing"), owner_id=None)
    held: list[Route] = []
    page.route("**/js/upload.js*", lambda route: held.append(route))  # noqa: PLW0108 - it takes no builtin
    with page.expect_request("**/js/upload.js*"):
        page.goto(f"{HOME}/new", wait_until="commit")
    page.set_input_files("#upload-files", log)
    with page.expect_response(lambda answer: answer.status == 204, timeout=JOB):
        for route in held:
            route.continue_()
    with parts.sessions() as session:
        assert session.scalars(select(Upload.filename)).all() == ["traffic.jsonl"]


def _send_and_choose(page: Page, log: Path) -> None:
    """Send a file, look at its records, choose the reference; a reload keeps all of it."""
    page.set_input_files("#upload-files", log)
    expect(page.locator("#choices")).to_contain_text("What was found", timeout=JOB)
    expect(page.locator("[data-files] li")).to_have_count(0)
    expect(page.locator("#f-upload_ids tbody tr")).to_have_count(1)
    found = page.locator("section[aria-labelledby=found-t]")
    expect(found).to_contain_text("support-teacher-70b")
    page.select_option("#f-reference_path", "request.metadata.reference")
    page.get_by_label("Next record").click()
    expect(found).to_contain_text("Record 2 of 5")
    expect(found.locator(".ref")).to_contain_text("truth")
    page.fill("#f-test", "25")
    page.press("#f-test", "Tab")
    page.wait_for_url(re.compile("test=25"))
    page.reload()
    assert page.input_value("#f-reference_path") == "request.metadata.reference"
    assert page.input_value("#f-test") == "25"
    expect(found).to_contain_text("Record 2 of 5")


def _read_rejects(page: Page) -> None:
    rejects = page.locator("#rejects")
    rejects.get_by_role("link", name="not json").click()
    expect(rejects).to_contain_text("INFO gateway log rotated")
    with page.expect_download() as download:
        rejects.get_by_role("link", name=re.compile("JSONL")).click()
    assert download.value.path().read_text().count("\n") > 0
    rejects.get_by_role("link", name="All reasons").click()


def _read_conversations(page: Page) -> None:
    """Filter, open by keys, move, turn to JSON, close; the address follows."""
    page.click("text=Read conversations")
    expect(page.locator("#table")).to_contain_text("match")
    assert wider_than_their_cell(page) == []
    page.fill("#search", "case")
    page.locator(".facet a", has_text="train").click()
    page.wait_for_url(re.compile("split=train.*search=case"))
    assert page.input_value("#search") == "case", "typed a moment ago, not sent yet"
    rows = page.locator("[data-row]")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    peek = page.locator("#peek")
    expect(peek).to_contain_text("target")
    page.wait_for_url(re.compile("open="))
    first = page.locator("#peek h2").inner_text()
    look(page)
    page.keyboard.press("j")
    expect(page.locator("#peek h2")).not_to_have_text(first)
    expect(rows.nth(1).locator("a[aria-current]")).to_have_count(1)
    page.keyboard.press("t")
    expect(peek).to_contain_text('"messages":')
    page.reload()
    expect(peek).to_contain_text('"messages":')
    page.keyboard.press("Escape")
    expect(peek).to_be_hidden()
    page.keyboard.press("/")
    page.keyboard.type("nothing says this")
    expect(page.locator("#table")).to_contain_text("Nothing matches")
    assert page.evaluate("document.activeElement.id") == "search", "typing goes on"
    page.locator("#table").get_by_role("link", name=re.compile("the search")).click()
    expect(rows.first).to_be_visible()


def wider_than_their_cell(page: Page) -> list[str]:
    """Return first user messages that run into the next column."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("a.line")]
          .filter((a) => a.getBoundingClientRect().right > a.parentElement.getBoundingClientRect().right)
          .map((a) => a.textContent.slice(0, 40))"""
    )
    return found


def test_hostile_content_runs_nothing_and_looks_well(
    page: Page, parts: Services, tmp_path: Path
) -> None:
    made = Made(parts, tmp_path)
    said = EVIL.replace('"', "'")
    body = f'{{"messages": [{{"role": "user", "content": "{said}"}},'
    body += f'{{"role": "assistant", "content": "{said}"}}], "label": "{said}"}}\n<b>{said}\n'
    version = made.version(body.encode(), reference_path="label")
    made.upload(body.encode(), f"{'long-name-' * 12}{EVIL}.jsonl")
    lost = made.importing()
    paths = ("", "/new?reference_path=label", f"/{version}", f"/{version}/conversations?open=0")
    for path in (*paths, f"/{lost}"):
        page.goto(HOME + path)
        look(page)
        assert page.evaluate("window.ran") is None
    page.goto(f"{HOME}/{version}/conversations?open=0")
    expect(page.locator("#peek .ref")).to_contain_text("<script>")


def test_the_page_of_an_import_follows_its_stream(
    page: Page, parts: Services, tmp_path: Path
) -> None:
    made = Made(parts, tmp_path)
    version = made.importing()
    page.goto(f"{HOME}/{version}")
    expect(page.locator("main")).to_contain_text("You may close this page")
    page.click("text=Stop the import")
    expect(page.locator("main")).to_contain_text("It was cancelled.")
    page.click("text=Try again")
    expect(page.locator("h1")).to_contain_text("importing")
    with working(parts.sessions, parts.settings):
        expect(page.locator("h1")).to_contain_text("draft", timeout=JOB)
