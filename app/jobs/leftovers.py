"""Collect what dead attempts left: their folders under `home/work`, and workers long gone.

A folder is kept while its attempt holds the job, and while a job has a snapshot in it from which
it, or one that tries it again, may go on. All else is safe to take: an attempt that no longer holds
its job is fenced, so nothing it wrote there can become visible.
"""

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import structlog
from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from app.jobs.models import Job, JobAttempt, JobLease, JobSnapshot, Worker
from app.jobs.service import NOW
from app.jobs.snapshots import resumable
from app.settings import Settings

UNKNOWN_SECONDS = 600
"""A folder whose attempt is in no row (its project was deleted) is left alone this long."""
SHARED_SECONDS = 86_400
"""What attempts share (a download to go on with) is kept this long after its last change."""

log = structlog.get_logger()


def sweep(session: Session, settings: Settings) -> None:
    """Remove dead attempts' folders and forget workers that have not been seen for a day."""
    for folder in dead_folders(session, settings.work):
        shutil.rmtree(folder, ignore_errors=True)
        log.info("leftovers_removed", folder=folder.name)
    session.execute(delete(Worker).where(Worker.seen_at < NOW - text("interval '1 day'")))


def dead_folders(session: Session, work: Path) -> list[Path]:
    """Return the folders under `work` that nobody will read again."""
    if not work.is_dir():
        return []
    folders = [path for path in work.iterdir() if path.is_dir()]
    fences = {int(path.name): path for path in folders if path.name.isdecimal()}
    known = set(session.scalars(select(JobAttempt.fence).where(JobAttempt.fence.in_(fences))).all())
    kept = _held(session, fences) | _with_snapshots(session, fences)
    dead = [path for fence, path in fences.items() if fence in known - kept]
    dead += [
        path
        for fence, path in fences.items()
        if fence not in known and _unchanged_for(path) > UNKNOWN_SECONDS
    ]
    shared = (path for path in folders if not path.name.isdecimal())
    return dead + [path for path in shared if _unchanged_for(path) > SHARED_SECONDS]


def _held(session: Session, fences: Iterable[int]) -> set[int]:
    return set(session.scalars(select(JobLease.fence).where(JobLease.fence.in_(fences))))


def _with_snapshots(session: Session, fences: Iterable[int]) -> set[int]:
    return set(
        session.scalars(
            select(JobSnapshot.fence)
            .join(Job, Job.id == JobSnapshot.job_id)
            .where(JobSnapshot.fence.in_(fences), resumable())
        )
    )


def _unchanged_for(folder: Path) -> float:
    """Return the seconds since anything in the folder changed."""
    newest = 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            newest = max(newest, path.lstat().st_mtime)
        except FileNotFoundError:
            continue  # removed meanwhile
    return time.time() - newest
