"""Server-sent events of a stream: replay by id, then live; no database session while waiting."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from app.web.deps import services

RECHECK_SECONDS = 30.0
"""How often an open stream asks whether its session is still good (revoked: ends ≤ 60 s)."""
PING_SECONDS = 15
LAST_EVENT_ID = "Last-Event-ID"


def replay_from(request: Request, after: int) -> int:
    """Return where to start: the browser's Last-Event-ID, else what the page was rendered at."""
    given = request.headers.get(LAST_EVENT_ID, "")
    return int(given) if given.isdecimal() else after


def event_stream(
    request: Request,
    stream: str,
    *,
    after: int,
    still_allowed: Callable[[], bool],
    ends_on: frozenset[str] = frozenset(),
) -> EventSourceResponse:
    """Answer with a stream's events: `id` is the row id, `event` its kind, `data` its payload.

    Ends on a kind in `ends_on` (sent last), when the client leaves, or when `still_allowed`,
    asked every 30 seconds in a thread, says no.
    """
    follower = services(request).follower
    if follower is None:
        raise RuntimeError("no follower: create_app was given no redis_url")

    async def events() -> AsyncIterator[ServerSentEvent]:
        checked = time.monotonic()
        async for event in follower.follow(stream, replay_from(request, after)):
            if time.monotonic() - checked > RECHECK_SECONDS:
                if not await asyncio.to_thread(still_allowed):
                    return
                checked = time.monotonic()
            data = orjson.dumps({"job": event.job_id, **event.payload}).decode()
            yield ServerSentEvent(data=data, event=event.kind, id=str(event.id))
            if event.kind in ends_on:
                return

    return EventSourceResponse(
        events(),
        ping=PING_SECONDS,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
