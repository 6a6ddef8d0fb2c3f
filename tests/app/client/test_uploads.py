"""Sending files: cut connections, a restart in between, what is stored already."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI

from app.accounts import service as accounts
from app.cli.connect import InProcess
from app.client import rest, uploads
from app.client.rest import Api, Refused, Unreachable
from app.client.uploads import upload_file
from app.specs.fingerprint import file_sha256
from app.web.deps import Services

CONTENT = bytes(range(256)) * 40


class Cutting(httpx.BaseTransport):
    """Passes requests on, but loses the answers (or the requests) whose turn it is."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner
        self.patches = 0
        self.lose_request: set[int] = set()
        self.lose_answer: set[int] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "PATCH":
            return self.inner.handle_request(request)
        self.patches += 1
        if self.patches in self.lose_request:
            raise httpx.ConnectError("cut")
        answer = self.inner.handle_request(request)
        if self.patches in self.lose_answer:
            raise httpx.ReadError("cut")
        return answer


@pytest.fixture
def line(app: FastAPI) -> Iterator[Cutting]:
    with start_blocking_portal() as portal:
        yield Cutting(InProcess(app, portal))


@pytest.fixture
def api(line: Cutting, parts: Services, tmp_path: Path) -> Iterator[Api]:
    with parts.sessions.begin() as session:
        token = accounts.ensure_local_token(session, tmp_path / "token")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(transport=line, base_url="http://127.0.0.1", headers=headers) as http:
        api = Api(http, patience=5)
        api.post("/projects", {"name": "Tickets"})
        yield api


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(uploads, "PIECE_BYTES", 1000)
    monkeypatch.setattr(uploads, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(rest, "RETRY_SECONDS", 0.01)
    path = tmp_path / "log.jsonl"
    path.write_bytes(CONTENT)
    return path


def test_lost_requests_and_answers_cost_no_byte(api: Api, line: Cutting, file: Path) -> None:
    line.lose_request, line.lose_answer = {2, 3}, {5}
    seen: list[int] = []
    made = upload_file(api, "tickets", file, lambda done, _total: seen.append(done))
    assert (made["state"], made["sha256"]) == ("uploaded", file_sha256(file))
    assert line.patches == 11 + 2, "eleven pieces; two were sent twice"
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


def test_what_is_stored_is_not_sent_again(api: Api, line: Cutting, file: Path) -> None:
    first = upload_file(api, "tickets", file)
    sent = line.patches
    assert upload_file(api, "tickets", file)["id"] == first["id"]
    assert line.patches == sent


def test_an_upload_that_was_cut_off_goes_on(api: Api, line: Cutting, file: Path) -> None:
    line.lose_request = set(range(4, 100))
    api.patience = 0
    with pytest.raises(RecursionError):
        upload_file(api, "tickets", file, _stop_after(4))
    line.lose_request = set()
    before = line.patches
    upload_file(api, "tickets", file)
    assert line.patches - before == 11 - 3
    assert len(api.get("/projects/tickets/uploads")) == 1


def _stop_after(calls: int) -> uploads.OnBytes:
    """Return a progress callback that dies, as Ctrl-C would make the command die."""
    left = [calls]

    def on_bytes(_done: int, _total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RecursionError

    return on_bytes


def test_another_file_of_that_name_and_size_is_not_mixed_in(
    api: Api, line: Cutting, file: Path
) -> None:
    line.lose_request = set(range(2, 100))
    with pytest.raises(RecursionError):
        upload_file(api, "tickets", file, _stop_after(2))
    line.lose_request = set()
    file.write_bytes(bytes(reversed(CONTENT)))
    made = upload_file(api, "tickets", file)
    assert made["sha256"] == file_sha256(file)
    assert [u["id"] for u in api.get("/projects/tickets/uploads")] == [made["id"]]


def test_refusals_and_silence_are_told_apart(api: Api, file: Path) -> None:
    with pytest.raises(Refused, match="no project") as refused:
        upload_file(api, "nothing", file)
    assert refused.value.status == 404
    broken = httpx.MockTransport(
        lambda _request: httpx.Response(500, json={"message": "x", "request_id": "r-17"})
    )
    with (
        httpx.Client(transport=broken, base_url="http://127.0.0.1") as http,
        pytest.raises(Refused, match=r"its log tells why \(r-17\)") as failed,
    ):
        Api(http).get("/projects")
    assert failed.value.status == 500
    api.http.headers["Authorization"] = "Bearer wrong"
    api.patience = 0
    with pytest.raises(Unreachable, match="does not accept the API token"):
        api.get("/projects")
