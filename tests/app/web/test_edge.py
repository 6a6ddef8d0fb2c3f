"""What surrounds every request: headers, refusals, errors by kind of caller, health."""

import json
import re
import time

import pytest
from fastapi import FastAPI, Request
from psycopg.errors import DeadlockDetected
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from app.db.hooks import signal_after_commit
from app.errors import Conflict
from app.main import InsecureBind, check_bind
from app.settings import Settings
from app.web.deps import Services, SessionDep, cookie_name, open_to_all
from app.web.middleware import host_name
from tests.app.conftest import Recorder


def _fail() -> Response:
    raise ZeroDivisionError


def _conflict() -> Response:
    raise Conflict("DatasetIsFrozen: traffic v3 cannot be changed.")


async def _read(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.fixture
def probe(app: FastAPI, client: TestClient) -> TestClient:
    for path, endpoint, method in (
        ("/fail", _fail, "GET"),
        ("/conflict", _conflict, "GET"),
        ("/read", _read, "POST"),
    ):
        app.add_api_route(path, endpoint, methods=[method], dependencies=[open_to_all()])
    # The static mount answers everything below it only; routes added later still match.
    return client


def test_security_headers_are_on_every_answer(probe: TestClient) -> None:
    for path in ("/sign-in", "/nowhere", "/fail", "/static/stillhouse.css", "/healthz"):
        headers = probe.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy, path
        assert "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])


def test_nonce_is_new_each_time_and_on_every_script(client: TestClient) -> None:
    first, second = client.get("/sign-in"), client.get("/sign-in")
    nonces = []
    for page in (first, second):
        match = re.search(r"'nonce-([\w-]+)'", page.headers["content-security-policy"])
        assert match
        nonces.append(match[1])
        scripts = re.findall(r"<script [^>]*>", page.text)
        assert len(scripts) == 3
        assert all(f'nonce="{match[1]}"' in tag for tag in scripts)
    assert nonces[0] != nonces[1]


def test_error_page_for_a_person(probe: TestClient) -> None:
    page = probe.get("/fail", headers={"Accept": "text/html"})
    assert page.status_code == 500
    assert "Something failed on our side" in page.text
    assert page.headers["x-request-id"] in page.text
    assert "ZeroDivision" not in page.text


def test_toast_for_htmx(probe: TestClient) -> None:
    answer = probe.get("/conflict", headers={"HX-Request": "true", "HX-Request-Type": "partial"})
    assert answer.status_code == 409
    assert answer.headers["hx-reswap"] == "none"
    toast = json.loads(answer.headers["hx-trigger"])["toast"]
    assert toast["text"] == "DatasetIsFrozen: traffic v3 cannot be changed."
    assert answer.text == ""


def test_htmx_is_sent_to_sign_in_by_a_full_load(client: TestClient) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://127.0.0.1/projects/x?sort=a"}
    answer = client.get("/account", headers=headers)
    assert answer.headers["hx-redirect"] == "/sign-in?next=%2Fprojects%2Fx%3Fsort%3Da"


def test_json_for_programs(probe: TestClient) -> None:
    body = probe.get("/conflict", headers={"Accept": "application/json"}).json()
    assert body["error"] == "Conflict"
    assert body["request_id"]
    missing = probe.get("/api/v1/nowhere")
    assert missing.status_code == 404
    assert missing.json()["message"] == "There is nothing at this address."


def test_wrong_method(probe: TestClient) -> None:
    assert probe.post("/healthz").status_code == 405
    assert "POST" not in probe.post("/healthz").headers["allow"]


def test_404_keeps_the_menu_of_who_is_signed_in(signed_in: TestClient) -> None:
    page = signed_in.get("/nowhere", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert "ada, account" in page.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8321", 200),
        ("localhost", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
def test_host_must_be_ours(client: TestClient, host: str, status: int) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == status


def test_host_name_drops_the_port_only() -> None:
    assert host_name("[::1]:8321") == "[::1]"
    assert host_name("[::1]") == "[::1]"
    assert host_name("LOCALHOST:1") == "localhost"


def test_bodies_are_limited_declared_or_not(probe: TestClient, parts: Services) -> None:
    limit = parts.settings.max_body_bytes
    json_type = {"Content-Type": "application/json"}
    declared = probe.post("/read", content=b"x" * (limit + 1), headers=json_type)
    assert declared.status_code == 413
    chunks = (b"x" * 65536 for _ in range(limit // 65536 + 2))
    assert probe.post("/read", content=chunks, headers=json_type).status_code == 413
    assert probe.post("/read", content=b"x" * limit, headers=json_type).text == str(limit)
    stream = {"Content-Type": "application/offset+octet-stream"}
    assert probe.post("/read", content=b"x" * (limit + 1), headers=stream).status_code == 200


def test_ten_thousand_ranges_cost_nothing(client: TestClient) -> None:
    ranges = "bytes=" + ",".join(f"{i}-{i}" for i in range(10_000))
    started = time.perf_counter()
    answer = client.get("/static/stillhouse.css", headers={"Range": ranges})
    assert time.perf_counter() - started < 0.05
    assert answer.status_code == 400


def test_static_files_with_a_version_are_immutable(client: TestClient) -> None:
    page = client.get("/sign-in").text
    match = re.search(r'href="(/static/stillhouse\.css\?v=[0-9a-f]+)"', page)
    assert match
    assert "immutable" in client.get(match[1]).headers["cache-control"]
    assert client.get("/static/stillhouse.css").headers["cache-control"] == "no-cache"
    assert client.get("/static/../app/main.py").status_code == 404
    assert client.get("/static/%2e%2e/app/main.py").status_code == 404


def test_health_and_readiness(client: TestClient, parts: Services, broker: Recorder) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    parts.extra.clear()
    broker.up = False
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["broker"] is False


def test_commit_comes_before_the_answer_and_signals_after_it(
    app: FastAPI, client: TestClient, broker: Recorder
) -> None:
    def write(session: SessionDep, *, bad: bool = False) -> str:
        session.execute(
            text("create temporary table t (id int unique deferrable initially deferred)")
        )
        session.execute(text("insert into t values (1), (:second)"), {"second": 1 if bad else 2})
        signal_after_commit(session, "nudge", "cpu")
        return "written"

    app.add_api_route("/write", write, methods=["POST"], dependencies=[open_to_all()])
    failed = client.post("/write?bad=true")
    assert failed.status_code == 500, "the constraint fails at commit"
    assert broker.sent == []
    assert client.post("/write").json() == "written"
    assert broker.sent == [("nudge", "cpu")]


def test_open_bind_without_tls_is_refused(settings: Settings) -> None:
    open_bind = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104 - the case refused
    with pytest.raises(InsecureBind, match="STILLHOUSE_INSECURE_HTTP"):
        check_bind(open_bind)
    check_bind(open_bind.model_copy(update={"insecure_http": True}))
    check_bind(open_bind.model_copy(update={"behind_tls": True}))


def test_cookie_has_the_host_prefix_behind_tls(settings: Settings) -> None:
    assert cookie_name(settings) == "stillhouse"
    assert cookie_name(settings.model_copy(update={"behind_tls": True})) == "__Host-stillhouse"


def test_what_the_database_cannot_hold_is_refused_and_not_our_failure(
    signed_in: TestClient, api_client: TestClient
) -> None:
    for path in ("/projects/%00", "/projects/x/runs/99999999999999999999"):
        assert signed_in.get(path).status_code == 404, path
    assert api_client.get("/api/v1/jobs/99999999999999999999").status_code == 404
    refused = api_client.post("/api/v1/projects", json={"name": "a\0b"})
    assert refused.status_code == 422
    assert "NUL" in refused.json()["message"]


def test_a_database_that_is_away_is_said(app: FastAPI, client: TestClient) -> None:
    def away() -> Response:
        raise OperationalError("select 1", {}, Exception("connection refused"))

    def deadlocked() -> Response:
        raise OperationalError("select 1", {}, DeadlockDetected("deadlock detected"))

    for path, endpoint in (("/away", away), ("/deadlock", deadlocked)):
        app.add_api_route(path, endpoint, dependencies=[open_to_all()])
    page = client.get("/away")
    assert page.status_code == 503
    assert "The database does not answer" in page.text
    assert client.get("/deadlock").status_code == 500, "another thing than being away"
