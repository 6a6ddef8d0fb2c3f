"""Snapshots of a job that ended without a result: kept a while for the one that tries it again."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.events.append import move_points
from app.jobs.models import Job, JobSnapshot
from app.specs.jobs import TERMINAL_STATES, JobState

KEPT = timedelta(days=7)
"""How long after the end of a job that nobody tries again."""
UNSOUND = "SnapshotError"
"""Error of a body that found none of its snapshots sound: who tries again starts anew."""


def resumable() -> ColumnElement[bool]:
    """Whether a job's snapshots may still be read: by itself, or by one that tries it again."""
    failed = (Job.state == JobState.FAILED) & Job.error.is_distinct_from(UNSOUND)
    # Stopped to be kept, yet it left nothing: it never ran again, or did not end in time.
    stopped = (Job.state == JobState.CANCELLED) & (Job.cancel_mode == "keep") & Job.result.is_(None)
    lately = Job.ended_at > func.clock_timestamp() - KEPT
    return or_(Job.state.not_in(TERMINAL_STATES), and_(or_(failed, stopped), lately))


def left_by(session: Session, job_id: int) -> Sequence[JobSnapshot]:
    """Return what an ended job left to go on from, the newest first."""
    return session.scalars(
        select(JobSnapshot)
        .join(Job, Job.id == JobSnapshot.job_id)
        .where(Job.id == job_id, Job.state.in_(TERMINAL_STATES), resumable())
        .order_by(JobSnapshot.step.desc(), JobSnapshot.id.desc())
    ).all()


def take_over(session: Session, job_id: int, again_id: int) -> None:
    """Give what an ended job left, and its points up to there, to the one that tries it again."""
    left = left_by(session, job_id)
    if not left:
        return
    ids = [row.id for row in left]
    session.execute(update(JobSnapshot).where(JobSnapshot.id.in_(ids)).values(job_id=again_id))
    move_points(session, job_id, again_id, left[0].step)


def discard(session: Session, job_id: int) -> bool:
    """Give up what an ended job left; its files go with the next sweep. Return if there was any."""
    ids = [row.id for row in left_by(session, job_id)]
    session.execute(delete(JobSnapshot).where(JobSnapshot.id.in_(ids)))
    return bool(ids)
