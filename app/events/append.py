"""Write events and metric points; readers are woken after the commit.

Viewers follow several streams by one cursor over ids, so an id must never become visible after a
higher one. Events are therefore kept in the session and get their ids right before the commit,
under a lock that ends with it: held for one insert, and after every row lock, so nothing that holds
it waits for somebody else.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, SessionTransaction

from app.db.hooks import signal_after_commit
from app.events.models import MetricPoint, RunEvent

IDS_LOCK = 0x5711
"""Key of the advisory lock under which events get their ids."""


class Pending(NamedTuple):
    row: dict[str, Any]
    savepoint: SessionTransaction | None


def append(
    session: Session, stream: str, kind: str, payload: dict[str, Any], *, job_id: int | None = None
) -> None:
    """Add one event to a stream; its id, given at the commit, is what viewers replay from."""
    if not session.in_transaction():
        session.begin()  # so that a rollback takes the event along
    row = {"stream": stream, "job_id": job_id, "kind": kind, "payload": payload}
    session.info.setdefault("events", []).append(Pending(row, session.get_nested_transaction()))
    signal_after_commit(session, "wake", stream)


@event.listens_for(Session, "before_commit")
def write_pending(session: Session) -> None:
    """Give the session's events their ids; a reader of the same session calls it too."""
    if not session.info.get("events"):
        return
    session.flush()
    rows = [pending.row for pending in session.info.pop("events")]
    session.execute(select(func.pg_advisory_xact_lock(IDS_LOCK)))
    session.execute(insert(RunEvent), rows)


@event.listens_for(Session, "after_soft_rollback")
def _forget(session: Session, undone: SessionTransaction) -> None:
    kept = [p for p in session.info.pop("events", ()) if not _within(p.savepoint, undone)]
    if undone.nested and kept:
        session.info["events"] = kept


def _within(savepoint: SessionTransaction | None, undone: SessionTransaction) -> bool:
    while savepoint is not None and savepoint is not undone:
        savepoint = savepoint.parent
    return savepoint is undone


def add_points(
    session: Session,
    stream: str,
    *,
    job_id: int,
    fence: int,
    steps: Mapping[int, Mapping[str, float]],
) -> None:
    """Store metric points and tell viewers; for an equal key the higher fence wins."""
    rows = [
        {"job_id": job_id, "metric": metric, "step": step, "fence": fence, "value": value}
        for step, values in steps.items()
        for metric, value in values.items()
    ]
    if not rows:
        return
    statement = postgresql.insert(MetricPoint)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "metric", "step"],
            set_={
                "value": statement.excluded.value,
                "fence": statement.excluded.fence,
                "at": text("clock_timestamp()"),
            },
            where=MetricPoint.fence <= statement.excluded.fence,
        ),
        rows,
    )
    for step, values in steps.items():
        append(session, stream, "metric", {"step": step, "values": dict(values)}, job_id=job_id)


def move_points(session: Session, job_id: int, to_id: int, step: int) -> None:
    """Give a job's points up to a step to the job that goes on from there."""
    session.execute(
        update(MetricPoint)
        .where(MetricPoint.job_id == job_id, MetricPoint.step <= step)
        .values(job_id=to_id)
    )


def drop_points_beyond(session: Session, job_id: int, step: int) -> None:
    """Forget points past a snapshot's step: the attempt that resumes there makes them again."""
    session.execute(
        delete(MetricPoint).where(MetricPoint.job_id == job_id, MetricPoint.step > step)
    )
