"""Read events and points."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.events.append import write_pending
from app.events.models import MetricPoint, RunEvent

PAGE = 500


def events_after(
    session: Session, streams: Sequence[str], after_id: int, *, limit: int = PAGE
) -> Sequence[RunEvent]:
    """Return the events of some streams with an id above `after_id`, oldest first."""
    write_pending(session)
    return session.scalars(
        select(RunEvent)
        .where(RunEvent.stream.in_(streams), RunEvent.id > after_id)
        .order_by(RunEvent.id)
        .limit(limit)
    ).all()


def last_event_id(session: Session, *streams: str) -> int:
    """Return where a page that renders the present state starts to follow."""
    write_pending(session)
    found = session.scalar(select(func.max(RunEvent.id)).where(RunEvent.stream.in_(streams)))
    return found or 0


def log_lines(session: Session, *streams: str, limit: int = 200) -> Sequence[RunEvent]:
    """Return the newest log events of some streams, oldest first."""
    write_pending(session)
    rows = session.scalars(
        select(RunEvent)
        .where(RunEvent.stream.in_(streams), RunEvent.kind == "log")
        .order_by(RunEvent.id.desc())
        .limit(limit)
    ).all()
    return rows[::-1]


def series(session: Session, job_ids: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
    """Return metric → [(step, value), …] over the given jobs, steps ascending."""
    rows = session.execute(
        select(MetricPoint.metric, MetricPoint.step, MetricPoint.value)
        .where(MetricPoint.job_id.in_(job_ids))
        .order_by(MetricPoint.metric, MetricPoint.step)
    )
    found: dict[str, list[tuple[int, float]]] = {}
    for metric, step, value in rows:
        found.setdefault(metric, []).append((step, value))
    return found


def thin_series(
    session: Session, job_ids: Sequence[int], metrics: Sequence[str], *, points: int
) -> dict[tuple[int, str], list[tuple[int, float]]]:
    """Return (job, metric) → about `points` of its (step, value), the last among them.

    Thinned by the database: many runs' curves on one page would else travel whole.
    """
    own = (MetricPoint.job_id, MetricPoint.metric)
    numbered = (
        select(
            *own,
            MetricPoint.step,
            MetricPoint.value,
            func.row_number().over(partition_by=own, order_by=MetricPoint.step).label("place"),
            func.count().over(partition_by=own).label("total"),
        )
        .where(MetricPoint.job_id.in_(job_ids), MetricPoint.metric.in_(metrics))
        .subquery()
    )
    stride = func.greatest(1, numbered.c.total // points)
    rows = session.execute(
        select(numbered.c.job_id, numbered.c.metric, numbered.c.step, numbered.c.value)
        .where(or_((numbered.c.place - 1) % stride == 0, numbered.c.place == numbered.c.total))
        .order_by(numbered.c.job_id, numbered.c.metric, numbered.c.step)
    )
    found: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for job_id, metric, step, value in rows:
        found.setdefault((job_id, metric), []).append((step, value))
    return found


def latest(session: Session, job_ids: Sequence[int]) -> dict[str, tuple[int, float]]:
    """Return each metric's newest (step, value) over the given jobs."""
    rows = session.execute(
        select(MetricPoint.metric, MetricPoint.step, MetricPoint.value)
        .where(MetricPoint.job_id.in_(job_ids))
        .ext(distinct_on(MetricPoint.metric))
        .order_by(MetricPoint.metric, MetricPoint.step.desc())
    )
    return {metric: (step, value) for metric, step, value in rows}


def latest_by_job(session: Session, job_ids: Sequence[int], metric: str) -> dict[int, float]:
    """Return the newest value of one metric for each of some jobs."""
    rows = session.execute(
        select(MetricPoint.job_id, MetricPoint.value)
        .where(MetricPoint.job_id.in_(job_ids), MetricPoint.metric == metric)
        .ext(distinct_on(MetricPoint.job_id))
        .order_by(MetricPoint.job_id, MetricPoint.step.desc())
    )
    return {row.job_id: row.value for row in rows}
