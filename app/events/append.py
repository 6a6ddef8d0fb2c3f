"""Write events and metric points; readers are woken after the commit."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.hooks import signal_after_commit
from app.events.models import MetricPoint, RunEvent


def append(
    session: Session, stream: str, kind: str, payload: dict[str, Any], *, job_id: int | None = None
) -> None:
    """Add one event to a stream; its id, given by the database, is what viewers replay from."""
    session.add(RunEvent(stream=stream, job_id=job_id, kind=kind, payload=payload))
    signal_after_commit(session, "wake", stream)


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
    statement = insert(MetricPoint)
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


def drop_points_beyond(session: Session, job_id: int, step: int) -> None:
    """Forget points past a snapshot's step: the attempt that resumes there makes them again."""
    session.execute(
        delete(MetricPoint).where(MetricPoint.job_id == job_id, MetricPoint.step > step)
    )
