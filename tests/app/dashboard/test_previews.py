"""What is learned: asked from the form, shown by the worker's own rendering, kept for the next."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.projects.models import Project
from app.web.deps import Services
from tests.app.dashboard.test_new_run import values, values_of  # noqa: F401 - a fixture
from tests.support import made_rows
from tests.support.workers import working_here
from tests.workers.distill import tiny
from workers.distill.checkpoints import save_checkpoint

RUNS = "/projects/support-router/runs"
API = f"/api/v1{RUNS}/preview"


def real_student(parts: Services) -> None:
    """Give the project's student weights and a tokenizer of its own."""
    with parts.sessions.begin() as session:
        student_id = session.get_one(Project, 1).student_id
        student = session.get_one(Checkpoint, student_id)
        student.blob = "checkpoints/tiny"
    save_checkpoint(
        tiny.llama(layers=1), tiny.tokenizer(), parts.settings.blobs / "checkpoints/tiny"
    )


def ask(pages: TestClient, values: dict[str, Any]) -> str:  # noqa: F811
    answer = pages.post(f"{RUNS}/preview", data=values)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def test_the_form_asks_and_comes_back_as_it_was(
    pages: TestClient,
    parts: Services,
    values: dict[str, Any],  # noqa: F811
) -> None:
    real_student(parts)
    changed = {**values, "steps": "77", "targets": "last_turn", "also": ["sequence_level"]}
    address = ask(pages, changed)
    waiting = pages.get(address).text
    assert "A worker renders the conversations" in waiting
    assert 'hx-trigger="every 1s"' in waiting
    with working_here(parts.sessions, parts.settings):
        while 'hx-trigger="every 1s"' in (page := pages.get(address).text):
            pass
    assert "% of the tokens are learned" in page
    assert "the last turn only" in page
    assert '<mark title="' in page
    assert address.partition("?")[0] == ask(pages, values | changed).partition("?")[0], "once"
    back = page.partition('href="/projects/support-router/runs/new?')[2].partition('"')[0]
    form = pages.get(f"{RUNS}/new?{back.replace('&amp;', '&')}").text
    kept = values_of(form)
    assert (kept["steps"], kept["targets"], kept["also"]) == ("77", "last_turn", "sequence_level")


def test_other_settings_are_another_question_and_the_schedule_is_none(
    pages: TestClient,
    values: dict[str, Any],  # noqa: F811
) -> None:
    first = ask(pages, values).partition("?")[0]
    assert ask(pages, {**values, "steps": "9", "seed": "4"}).partition("?")[0] == first
    assert ask(pages, {**values, "max_tokens": "32"}).partition("?")[0] != first


def test_a_form_that_does_not_hold_is_shown_with_its_error(
    pages: TestClient,
    values: dict[str, Any],  # noqa: F811
) -> None:
    answer = pages.post(f"{RUNS}/preview", data={**values, "max_tokens": "none"})
    assert answer.status_code == 422
    assert "Must be a whole number." in answer.text


@pytest.mark.parametrize(
    ("what", "words"),
    [("version", "A run needs data"), ("student", "is registering. Wait for its job.")],
)
def test_what_is_not_there_yet_is_refused(
    pages: TestClient,
    parts: Services,
    values: dict[str, Any],  # noqa: F811
    what: str,
    words: str,
) -> None:
    with parts.sessions.begin() as session:
        if what == "version":
            session.get_one(DatasetVersion, 1).state = "importing"
        else:
            student = session.get_one(Checkpoint, session.get_one(Project, 1).student_id)
            student.state = "registering"
    answer = pages.post(f"{RUNS}/preview", data=values)
    assert answer.status_code == 422
    assert words in answer.text


def test_the_api_asks_and_answers(api_client: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = made_rows.project(session)
        made_rows.teacher_and_student(session, project)
        made_rows.version(session, project, parts.settings)
    real_student(parts)
    asked = api_client.post(API, json={"name": "kd", "dataset": "traffic"})
    assert asked.status_code == 202, asked.text
    job = asked.json()["job_id"]
    assert asked.json()["preview"] is None
    with working_here(parts.sessions, parts.settings):
        while (found := api_client.get(f"{API}/{job}").json())["state"] != "succeeded":
            assert found["state"] != "failed", found["message"]
    shown = found["preview"]
    assert shown["looked_at"] > 0
    assert any(piece["learned"] for piece in shown["shown"][0]["pieces"])
    assert json.dumps(shown)
    assert api_client.get(f"{API}/999").status_code == 404
    other = api_client.post("/api/v1/projects", json={"name": "Other"}).json()["slug"]
    elsewhere = f"/api/v1/projects/{other}/runs/preview/{job}"
    assert api_client.get(elsewhere).status_code == 404
    queue = api_client.get("/api/v1/jobs").json()
    assert any(j["kind"] == "preview" for j in queue) or queue == []


def test_a_checkpoint_without_its_files_says_so(
    pages: TestClient,
    parts: Services,
    values: dict[str, Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    assert not list(tmp_path.glob("checkpoints/*"))
    address = ask(pages, values)
    with working_here(parts.sessions, parts.settings):
        while 'hx-trigger="every 1s"' in (page := pages.get(address).text):
            pass
    assert "The conversations could not be rendered." in page
    assert "Register the checkpoint again" in page
