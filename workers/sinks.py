"""Both ends of the event pipe: the child writes values, the supervisor turns them into rows."""

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from app.events.append import add_points, append
from app.jobs import lease
from app.specs.base import Spec
from app.specs.events import (
    LogEvent,
    MetricEvent,
    PhaseEvent,
    ProgressEvent,
    PublishEvent,
    ResumedEvent,
    SnapshotEvent,
)


class PipeCallbacks:
    """The child's end: `Callbacks` of the cores as JSON lines on a pipe.

    SIGTERM asks to stop; the core finishes its step, saves, and returns.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())

    def send(self, event: Spec) -> None:
        with self._lock:
            self._pipe.write(event.model_dump_json().encode() + b"\n")
            self._pipe.flush()

    def phase(self, name: str) -> None:
        self.send(PhaseEvent(name=name))

    def progress(self, done: int, total: int, unit: str) -> None:
        self.send(ProgressEvent(done=done, total=total, unit=unit))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.send(MetricEvent(step=step, values=dict(values)))

    def log(self, text: str, level: str = "info") -> None:
        self.send(LogEvent.model_validate({"level": level, "text": text}))

    def snapshot(
        self,
        step: int,
        folder: Path,
        manifest_sha256: str,
        *,
        best: bool = False,
        value: float | None = None,
    ) -> None:
        self.send(
            SnapshotEvent(
                step=step,
                folder=str(folder),
                manifest_sha256=manifest_sha256,
                best=best,
                value=value,
            )
        )

    def resumed(self, step: int) -> None:
        self.send(ResumedEvent(step=step))

    def publish(self, payload: Mapping[str, Any]) -> None:
        self.send(PublishEvent(payload=dict(payload)))

    def should_stop(self) -> bool:
        return self._stop.is_set()


Publish = Callable[[Session, lease.Claim, dict[str, Any]], None]


class EventRows:
    """The supervisor's end: a batch of events becomes rows of one fenced transaction."""

    def __init__(self, held: lease.Claim, publish: Publish) -> None:
        self._held = held
        self._publish = publish
        self._first: tuple[int, float] | None = None
        """Done and moment of the phase's first progress: what is left follows from its speed."""

    def write(self, session: Session, events: list[Spec]) -> None:
        """Write a batch; of several progress values only the newest is kept."""
        held = self._held
        steps: dict[int, dict[str, float]] = defaultdict(dict)
        progress: ProgressEvent | None = None
        for event in events:
            if isinstance(event, MetricEvent):
                steps[event.step].update(event.values)
            elif isinstance(event, ProgressEvent):
                progress = event
            elif isinstance(event, PhaseEvent):
                progress = self._first = None
                lease.set_phase(session, held, event.name)
            elif isinstance(event, LogEvent):
                payload = {"level": event.level, "text": event.text}
                append(session, held.stream, "log", payload, job_id=held.job_id)
            elif isinstance(event, SnapshotEvent):
                lease.add_snapshot(session, held, event)
            elif isinstance(event, ResumedEvent):
                lease.resumed(session, held, event.step)
            elif isinstance(event, PublishEvent):
                lease.made_progress(session, held)
                self._publish(session, held, event.payload)
        if progress is not None:
            values = progress.model_dump(exclude={"type"})
            lease.set_progress(session, held, {**values, "eta_seconds": self._left(progress)})
        add_points(session, held.stream, job_id=held.job_id, fence=held.fence, steps=steps)

    def _left(self, progress: ProgressEvent) -> float | None:
        """Return the seconds that the phase still takes at its speed so far."""
        moment = time.monotonic()
        if self._first is None:
            self._first = (progress.done, moment)
        first, since = self._first
        if progress.eta_seconds is not None or progress.done <= first:
            return progress.eta_seconds
        return (progress.total - progress.done) * (moment - since) / (progress.done - first)


def open_event_pipe() -> BinaryIO:
    """Return the child's event pipe: the stdout it was born with.

    Stray prints of libraries must not break the protocol, so file descriptor 1 becomes stderr.
    """
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe
