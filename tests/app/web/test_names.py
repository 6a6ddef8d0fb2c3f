"""A name has something in it that can be seen, wherever one is given."""

import pytest
from starlette.testclient import TestClient

from app.datasets.service import start_upload
from app.specs.names import INVISIBLE, is_visible
from app.web.deps import Services
from tests.support import made_rows, seeds

NOTHING = "\u200b\u2063\u3164"
"""Zero-width space, invisible separator, Hangul filler."""
P = "/projects/routing"


@pytest.mark.parametrize("text", ["a", "7", "…", "é", "語", "🙂", " \u200bx", "ab\u0301"])
def test_what_can_be_seen(text: str) -> None:
    assert is_visible(text)


@pytest.mark.parametrize("text", ["", " ", "\u00a0", "\u2800", "\u0301", "\u202e\ufeff", NOTHING])
def test_what_cannot_be_seen(text: str) -> None:
    assert not is_visible(text)


@pytest.fixture
def _rows(parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        made_rows.teacher_and_student(session, project)
        made_rows.version(session, project, parts.settings)
        start_upload(session, project, filename="log.jsonl", size=9, settings=parts.settings)


SOURCE = {"kind": "hub", "repo_id": "a/b"}
REQUESTS = [
    ("POST", "/projects", {}, "name"),
    ("PUT", P, {}, "name"),
    ("POST", f"{P}/checkpoints", {"source": SOURCE}, "name"),
    ("POST", f"{P}/checkpoints/students", {"teacher_id": 1, "prune": {"depth": 1}}, "name"),
    ("POST", f"{P}/imports", {"upload_ids": [1]}, "dataset"),
    ("POST", f"{P}/runs", {}, "name"),
    ("POST", f"{P}/runs", {"name": "x"}, "group"),
    ("POST", "/tokens", {}, "name"),
]


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize(("method", "path", "body", "field"), REQUESTS)
def test_the_api_refuses_an_invisible_name(
    api_client: TestClient, method: str, path: str, body: dict[str, object], field: str
) -> None:
    answer = api_client.request(method, f"/api/v1{path}", json={**body, field: NOTHING})
    assert answer.status_code == 422
    assert answer.json()["fields"] == {field: INVISIBLE}


FORMS = [
    ("/projects", {"tolerance": "2"}, "name"),
    (f"{P}/edit", {"tolerance": "2"}, "name"),
    (f"{P}/checkpoints/new/register", {**SOURCE}, "name"),
    (f"{P}/checkpoints/new/prune", {"teacher_id": "1", "depth": "1"}, "name"),
    (f"{P}/datasets", {"upload_ids": "1", "into": "*"}, "name"),
    (f"{P}/runs", {}, "name"),
    (f"{P}/runs", {"name": "x"}, "group"),
    ("/account/tokens", {"days": "9"}, "name"),
]


@pytest.mark.usefixtures("_rows")
@pytest.mark.parametrize(("path", "values", "field"), FORMS)
def test_a_form_refuses_an_invisible_name(
    signed_in: TestClient, path: str, values: dict[str, str], field: str
) -> None:
    page = signed_in.post(path, data={**values, field: NOTHING})
    assert page.status_code == 422
    assert INVISIBLE in page.text


@pytest.mark.usefixtures("_rows")
def test_a_name_made_of_an_invisible_path_is_asked_for(signed_in: TestClient) -> None:
    form = {"kind": "folder", "path": f"/models/{NOTHING}"}
    page = signed_in.post(f"{P}/checkpoints/new/register", data=form)
    assert page.status_code == 422
    assert "The checkpoint needs a name." in page.text or "Is needed." in page.text


@pytest.mark.usefixtures("_rows")
def test_names_are_stripped(api_client: TestClient) -> None:
    body = {"name": "  big\t", "source": SOURCE}
    assert api_client.post(f"/api/v1{P}/checkpoints", json=body).json()["name"] == "big"
