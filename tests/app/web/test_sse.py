"""Streams: where they start, and that they end when the viewer is no longer let in."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import delete
from starlette.requests import Request
from starlette.testclient import TestClient

from app.accounts.models import User, UserSession
from app.events.follow import StreamEvent
from app.web.deps import Services, cookie_name, still_signed_in
from app.web.sse import checked, replay_from


def _request(headers: dict[str, str], app: object = None) -> Request:
    raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    return Request({"type": "http", "headers": raw, "app": app})


@pytest.mark.parametrize(
    ("given", "start"), [({"Last-Event-ID": "41"}, 41), ({}, 7), ({"Last-Event-ID": "x'--"}, 7)]
)
def test_replay_starts_at_what_the_browser_saw_last(given: dict[str, str], start: int) -> None:
    assert replay_from(_request(given), 7) == start


class Source:
    def __init__(self, count: int) -> None:
        self.count = count
        self.closed = False

    async def events(self) -> AsyncIterator[StreamEvent]:
        try:
            for i in range(self.count):
                yield StreamEvent(i, "log", None, {})
            await asyncio.sleep(60)
        finally:
            self.closed = True


async def _collect(source: Source, allowed: Callable[[], bool], seconds: float) -> list[int]:
    return [e.id async for e in checked(source.events(), allowed, seconds=seconds)]


def test_a_silent_stream_ends_after_a_revoke() -> None:
    source = Source(2)
    answers = iter([True, False])
    found = asyncio.run(asyncio.wait_for(_collect(source, lambda: next(answers), 0.02), timeout=2))
    assert found == [0, 1]
    assert source.closed


def test_nothing_is_sent_after_the_refusal() -> None:
    assert asyncio.run(_collect(Source(5), lambda: False, 0.0)) == []


def test_still_signed_in_follows_the_session(
    signed_in: TestClient, parts: Services, make_user: Callable[..., User]
) -> None:
    name = cookie_name(parts.settings)
    request = _request({"cookie": f"{name}={signed_in.cookies[name]}"}, signed_in.app)
    check = still_signed_in(request)
    assert check()
    with parts.sessions.begin() as session:
        session.execute(delete(UserSession))
    assert not check()
    make_user("other")
    assert not check()
