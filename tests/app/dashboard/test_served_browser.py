"""A checkpoint behind a server in Chromium: its form shows its fields, its pages owe what all do."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect
from starlette.testclient import TestClient

from app.datasets.models import Upload
from app.projects.models import Project
from app.web.deps import Services
from tests.app.dashboard.test_served_pages import ORIGIN, TEXT_ONLY, card, text_only
from tests.support import made_rows, seeds
from tests.support.browser import look, serving, signed_in_page

pytestmark = pytest.mark.browser
HOME = "/projects/routing"


@pytest.fixture
def page(browser: Browser, app: FastAPI, signed_in: TestClient) -> Iterator[Page]:
    with (
        serving(app) as address,
        signed_in_page(browser, address, signed_in, allowed="status of 422") as page,
    ):
        yield page


def test_the_form_shows_the_fields_of_what_is_chosen(page: Page, parts: Services) -> None:
    with parts.sessions.begin() as session:
        seeds.project(session)
    page.goto(f"{HOME}/checkpoints/new")
    expect(page.locator("#f-path")).to_be_visible()
    expect(page.locator("#f-base_url")).to_be_hidden()
    page.get_by_role("radio", name="A server").check()
    for hidden in ("#f-path", "#f-repo_id"):
        expect(page.locator(hidden)).to_be_hidden()
    look(page)
    page.fill("#f-base_url", "http://127.0.0.1:8000/v1")
    page.fill("#f-model", "org/big")
    page.get_by_role("button", name="Register the checkpoint").click()
    expect(page.locator("#f-base_url-e")).to_contain_text("STILLHOUSE_ENDPOINT_HOSTS")
    expect(page.locator("#f-base_url")).to_have_value("http://127.0.0.1:8000/v1")
    look(page)
    page.goto("/projects/new")
    page.get_by_role("radio", name="A server").check()
    expect(page.locator("#f-base_url")).to_be_visible()
    look(page)


def test_pages_of_a_served_teacher(page: Page, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        teacher = seeds.checkpoint(session, project, "served", card=card(), origin=ORIGIN)
        text = seeds.checkpoint(session, project, "text", card=text_only(), origin=ORIGIN)
        student = made_rows.checkpoint(session, project, "student", weights_fingerprint="d" * 64)
        made_rows.version(session, project, parts.settings)
        owner = session.get_one(Project, project.id)
        owner.teacher_id, owner.student_id = teacher.id, student.id
        session.add(
            Upload(
                project_id=project.id,
                key="k" * 32,
                filename="asked.jsonl",
                size=3,
                state="uploaded",
                origin="uploaded",
            )
        )
    for checkpoint in (teacher, text, student):
        page.goto(f"{HOME}/checkpoints/{checkpoint.id}")
        expect(page.locator("main h1").first).to_contain_text(checkpoint.name)
        look(page)
    page.goto(f"{HOME}/checkpoints")
    expect(page.locator("main")).to_contain_text("server, text only")
    look(page)
    page.goto(f"{HOME}/runs/new")
    expect(page.locator("#before")).to_contain_text("Rows are asked of")
    look(page)
    page.select_option("#f-teacher_id", label="text")
    expect(page.locator("#blocked")).to_contain_text("text-only endpoint")
    look(page)
    page.get_by_role("button", name="Use sequence-level").click()
    expect(page.locator("#blocked")).to_have_count(0)
    expect(page.get_by_role("radio", name="Sequence-level")).to_be_checked()
    assert TEXT_ONLY.top is None
