"""The API of projects, checkpoints and data: tus with resume and two writers, import, freeze."""

import asyncio
import base64
from collections.abc import Iterator
from hashlib import sha256

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from starlette.types import Message

from app.accounts.models import User
from app.checkpoints.api import router as checkpoints
from app.datasets import service
from app.datasets.api import router as datasets
from app.projects.api import router as projects
from app.security.permissions import Principal
from app.settings import Settings
from app.storage.uploads import Appender
from app.web import error_pages
from app.web.deps import Services

BASE = "/api/v1/projects"


@pytest.fixture
def client(own_database: str, settings: Settings) -> Iterator[TestClient]:
    settings = settings.model_copy(update={"database_url": own_database, "redis_url": None})

    people: dict[str, Principal] = {}

    def known(_session: Session, *, cookie: str | None, bearer: str | None) -> Principal | None:
        del cookie
        return people.get(bearer or "")

    app = FastAPI()
    for router in (projects, checkpoints, datasets):
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
    app.state.services.engine.dispose()


@pytest.fixture
def project(client: TestClient) -> str:
    made = client.post(BASE, json={"name": "Routing", "tolerance": 2})
    assert made.status_code == 201, made.text
    assert made.json()["tolerance"] == 2
    return f"{BASE}/{made.json()['slug']}"


def create(client: TestClient, project: str, size: int) -> str:
    name = base64.b64encode(b"../../log.jsonl").decode()
    made = client.post(
        f"{project}/uploads",
        headers={"Upload-Length": str(size), "Upload-Metadata": f"filename {name}"},
    )
    assert made.status_code == 201, made.text
    return str(made.headers["location"])


def send(client: TestClient, place: str, body: bytes, at: int) -> int:
    headers = {"Upload-Offset": str(at), "Content-Type": "application/offset+octet-stream"}
    return client.patch(place, content=body, headers=headers).status_code


def test_an_upload_resumes_where_it_stopped(client: TestClient, project: str) -> None:
    place = create(client, project, 10)
    assert send(client, place, b"01234", 0) == 204
    head = client.head(place)
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("5", "10")
    assert send(client, place, b"01234", 0) == 409
    assert send(client, place, b"567890000", 5) == 413
    assert client.head(place).headers["upload-offset"] == "5"
    assert send(client, place, b"56789", 5) == 204
    shown = client.get(place).json()
    assert (shown["state"], shown["filename"]) == ("uploaded", "log.jsonl")
    assert shown["sha256"] == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
    assert shown["job_id"] is not None


def lose_the_last_answer(client: TestClient, place: str, body: bytes) -> None:
    """Store all bytes as a connection that died before the server could note the end."""
    settings = client.app.state.services.settings  # type: ignore[attr-defined] - a FastAPI app
    writer = Appender(service.upload_path(settings, place.rsplit("/", 1)[-1]), 0, len(body))
    writer.write(body)
    writer.close()
    assert client.get(place).json()["state"] == "uploading"


def test_an_empty_patch_at_the_end_ends_an_upload(client: TestClient, project: str) -> None:
    place = create(client, project, 4)
    assert send(client, place, b"", 0) == 204
    assert client.get(place).json()["state"] == "uploading", "nothing is stored yet"
    lose_the_last_answer(client, place, b"abcd")
    assert send(client, place, b"", 4) == 204
    shown = client.get(place).json()
    assert shown["state"] == "uploaded"
    assert shown["sha256"] == sha256(b"abcd").hexdigest()
    assert send(client, place, b"", 4) == 204
    assert client.get(place).json()["job_id"] == shown["job_id"], "ended once"


def test_asking_how_much_is_stored_ends_an_upload_that_is_whole(
    client: TestClient, project: str
) -> None:
    place = create(client, project, 4)
    assert client.head(place).headers["upload-offset"] == "0"
    lose_the_last_answer(client, place, b"abcd")
    assert client.head(place).headers["upload-offset"] == "4"
    assert client.get(place).json()["state"] == "uploaded"


@pytest.mark.parametrize(("sent", "state"), [(b"abcd", "uploaded"), (b"abc", "uploading")])
def test_a_connection_cut_after_the_last_byte_ends_the_upload(
    client: TestClient, project: str, sent: bytes, state: str
) -> None:
    place = create(client, project, 4)
    messages = iter(
        [
            {"type": "http.request", "body": sent, "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    scope = {
        "type": "http", "http_version": "1.1", "method": "PATCH", "scheme": "http", "path": place,
        "raw_path": place.encode(), "root_path": "", "query_string": b"", "server": ("testserver", 80),
        "client": ("testclient", 1), "app": client.app,
        "headers": [(b"authorization", b"Bearer right"), (b"upload-offset", b"0")],
    }  # fmt: skip

    async def receive() -> Message:
        return next(messages)

    async def answer(_: Message) -> None:
        return None

    asyncio.run(client.app(scope, receive, answer))
    assert client.get(place).json()["state"] == state
    assert client.head(place).headers["upload-offset"] == str(len(sent))


def test_a_second_writer_is_refused_and_termination_removes(
    client: TestClient, project: str
) -> None:
    place = create(client, project, 4)
    settings = client.app.state.services.settings  # type: ignore[attr-defined] - a FastAPI app
    path = service.upload_path(settings, place.rsplit("/", 1)[-1])
    writer = Appender(path, 0, 4)
    assert send(client, place, b"abcd", 0) == 409
    writer.close()
    assert client.delete(place).status_code == 204
    assert client.head(place).status_code == 404
    assert not path.exists()


def test_import_and_freeze_answer_with_their_state(client: TestClient, project: str) -> None:
    place = create(client, project, 3)
    waiting = client.get(place).json()
    body = {"dataset": "traffic", "upload_ids": [waiting["id"]]}
    assert client.post(f"{project}/imports", json=body).status_code == 409
    assert send(client, place, b"{}\n", 0) == 204
    made = client.post(f"{project}/imports", json=body)
    assert made.status_code == 202
    version = f"{project}/versions/{made.json()['id']}"
    assert client.get(version).json()["state"] == "importing"
    assert client.post(f"{version}/freeze").status_code == 409
    assert client.get(f"{version}/conversations").status_code == 409
    assert client.get(f"{version}/rejects").status_code == 409
    assert len(client.get(f"{project}/versions").json()) == 1


def test_checkpoints_never_show_a_token(client: TestClient, project: str) -> None:
    source = {"kind": "hub", "repo_id": "a/b"}
    body = {"name": "hub", "source": source, "token": "hf_canary"}
    made = client.post(f"{project}/checkpoints", json=body)
    assert made.status_code == 202
    assert "hf_canary" not in made.text + client.get(f"{project}/checkpoints").text
    assert client.post(f"{project}/checkpoints", json=body).status_code == 422
    assert client.get(f"{project}/checkpoints/999").status_code == 404


def test_every_route_wants_a_token(client: TestClient, project: str) -> None:
    stranger = {"Authorization": "Bearer wrong"}
    for path in ("", "/checkpoints", "/uploads", "/versions"):
        assert client.get(f"{project}{path}", headers=stranger).status_code == 401
