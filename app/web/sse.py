"""Server-sent events of a stream: replay by id, then live; no database session while waiting."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request

from app.events.follow import StreamEvent
from app.web.deps import services

RECHECK_SECONDS = 30.0
"""How often an open stream asks whether its session is still good (revoked: ends ≤ 60 s)."""
PING_SECONDS = 15
LAST_EVENT_ID = "Last-Event-ID"
DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}
}
"""What the API's schema says of a stream: `responses=DESCRIBED`."""


def replay_from(request: Request, after: int) -> int:
    """Return where to start: the browser's Last-Event-ID, else what the page was rendered at."""
    given = request.headers.get(LAST_EVENT_ID, "")
    return int(given) if given.isdecimal() else after


async def checked(
    events: AsyncIterator[StreamEvent],
    still_allowed: Callable[[], bool],
    *,
    seconds: float = RECHECK_SECONDS,
) -> AsyncIterator[StreamEvent]:
    """Pass events on; every `seconds`, events or not, ask and end when the answer is no."""
    asked = time.monotonic()
    waiting: asyncio.Task[StreamEvent] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(events))
            left = max(0.0, asked + seconds - time.monotonic())
            await asyncio.wait({waiting}, timeout=left)
            if time.monotonic() - asked >= seconds:
                if not await asyncio.to_thread(still_allowed):
                    return
                asked = time.monotonic()
            if waiting.done():
                try:
                    event = waiting.result()
                except StopAsyncIteration:
                    return
                waiting = None
                yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def _next(events: AsyncIterator[StreamEvent]) -> StreamEvent:
    return await anext(events)


def event_stream(
    request: Request,
    *streams: str,
    after: int,
    still_allowed: Callable[[], bool],
    ends_on: frozenset[str] = frozenset(),
) -> EventSourceResponse:
    """Answer with the events of streams: `id` is the row id, `event` its kind, `data` its payload.

    Ends on a kind in `ends_on` (sent last), when the client leaves, or when `still_allowed`
    (`deps.still_signed_in(request)`), asked every 30 seconds in a thread, says no.
    """
    follower = services(request).follower
    if follower is None:
        raise RuntimeError("no follower: create_app was given no redis_url")

    async def events() -> AsyncIterator[ServerSentEvent]:
        following = follower.follow(streams, replay_from(request, after))
        async for event in checked(following, still_allowed):
            data = orjson.dumps({"job": event.job_id, **event.payload}).decode()
            yield ServerSentEvent(data=data, event=event.kind, id=str(event.id))
            if event.kind in ends_on:
                return

    return EventSourceResponse(
        events(),
        ping=PING_SECONDS,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
