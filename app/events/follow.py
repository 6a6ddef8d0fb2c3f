"""Follow streams live: rows are the truth, pub/sub only wakes; a wiped broker loses nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import redis.asyncio as redis
import structlog

CHANNEL = "stillhouse:wake:"
POLL_SECONDS = 5.0
"""How long a follower sleeps when nobody wakes it: the bound on delay without a broker."""
RECONNECT_SECONDS = 1.0

log = structlog.get_logger()


class StreamEvent(NamedTuple):
    id: int
    kind: str
    job_id: int | None
    payload: dict[str, Any]


Read = Callable[[Sequence[str], int], Sequence[StreamEvent]]


class Follower:
    """One per web process: one subscription wakes every viewer; `read` opens its own session."""

    def __init__(self, read: Read, redis_url: str) -> None:
        self._read = read
        self._redis_url = redis_url
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def follow(self, streams: Sequence[str], after_id: int) -> AsyncIterator[StreamEvent]:
        """Yield events above `after_id` for ever, waiting without a session between reads.

        Ids grow over all streams together, so one cursor serves several.
        """
        woken = asyncio.Event()
        for stream in streams:
            self._waiting.setdefault(stream, set()).add(woken)
        try:
            while True:
                woken.clear()
                events = await asyncio.to_thread(self._read, streams, after_id)
                for event in events:
                    after_id = event.id
                    yield event
                if not events:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), POLL_SECONDS)
        finally:
            for stream in streams:
                self._waiting[stream].discard(woken)
                if not self._waiting[stream]:
                    del self._waiting[stream]

    async def _listen(self) -> None:
        while True:
            try:
                async with redis.from_url(self._redis_url) as client, client.pubsub() as pubsub:
                    await pubsub.psubscribe(CHANNEL + "*")
                    async for message in pubsub.listen():
                        if message["type"] == "pmessage":
                            self._wake(message["channel"].decode().removeprefix(CHANNEL))
            except (redis.RedisError, OSError) as error:
                log.warning("wake_subscription_lost", error=str(error))
                await asyncio.sleep(RECONNECT_SECONDS)

    def _wake(self, stream: str) -> None:
        for event in self._waiting.get(stream, ()):
            event.set()
