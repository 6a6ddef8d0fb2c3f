"""Project pages under StrictUndefined: empty, filtered, made, refused; queries stay constant."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.accounts.models import User
from app.projects.routes import router
from app.security.permissions import Principal
from app.settings import Settings
from app.web import error_pages
from app.web.deps import Services


@pytest.fixture
def client(own_database: str, settings: Settings) -> Iterator[TestClient]:
    settings = settings.model_copy(update={"database_url": own_database, "redis_url": None})
    people: dict[str, Principal] = {}

    def known(_session: Session, *, cookie: str | None, bearer: str | None) -> Principal | None:
        del cookie
        return people.get(bearer or "")

    app = FastAPI()
    app.include_router(router)
    error_pages.install(app)
    services = Services.build(settings, known)
    app.state.services = services
    with services.sessions.begin() as session:
        user = User(name="admin", password_hash="", is_admin=True)
        session.add(user)
        session.flush()
        people["right"] = Principal(user_id=user.id, name="admin", is_admin=True, by="token")
    with TestClient(app, headers={"Authorization": "Bearer right"}) as client:
        yield client
    services.engine.dispose()


def make(client: TestClient, name: str, tolerance: str = "2") -> int:
    form = {"name": name, "goal": "cost_cut", "deciding_metric": "kl", "tolerance": tolerance}
    return client.post("/projects", data=form, follow_redirects=False).status_code


def test_a_project_is_made_and_listed(client: TestClient) -> None:
    assert "No projects yet" in client.get("/projects").text
    assert client.get("/projects/new").status_code == 200
    assert make(client, "<b>Router") == 303
    page = client.get("/projects").text
    assert "&lt;b&gt;Router" in page
    assert "<b>Router" not in page
    assert "No project matches" in client.get("/projects?search=zzz").text


def test_a_refused_form_keeps_what_was_typed(client: TestClient) -> None:
    form = {"name": "Kept", "tolerance": "-1"}
    page = client.post("/projects", data=form)
    assert page.status_code == 422
    assert "Kept" in page.text
    assert "Must be at least 0" in page.text


def test_the_list_takes_the_same_queries_however_long(client: TestClient) -> None:
    engine = client.app.state.services.engine  # type: ignore[attr-defined] - a FastAPI app
    counts = []
    for name in ("one", "two"):
        assert make(client, name) == 303
        statements: list[str] = []

        def note(_c: object, _k: object, text: str, *_rest: object) -> None:
            statements.append(text)  # noqa: B023 - called inside this turn only

        event.listen(engine, "before_cursor_execute", note)
        assert client.get("/projects").status_code == 200
        event.remove(engine, "before_cursor_execute", note)
        counts.append(len(statements))
    assert counts[0] == counts[1]
