"""Folders of dead attempts go; those of running and resumable ones stay."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.jobs import lease, service
from app.jobs.leftovers import SHARED_SECONDS, UNKNOWN_SECONDS, dead_folders, sweep
from app.jobs.models import Job, Worker
from app.jobs.snapshots import discard
from app.settings import Settings
from app.specs.events import ErrorEvent, SnapshotEvent
from app.specs.jobs import FreezeJob, JobKind, JobState, Queue


def attempt(session: Session, work: Path) -> lease.Claim:
    spec = FreezeJob(dataset_version_id=1)
    service.enqueue(
        session,
        service.JobRequest(kind=JobKind.FREEZE, spec=spec, stream="version:1", title="Freeze"),
    )
    held = lease.claim(session, Queue.CPU, worker="w", host="h", lease_seconds=30)
    assert held is not None
    folder(work, str(held.fence))
    return held


def folder(work: Path, name: str, *, age: float = 0) -> Path:
    made = work / name
    (made / "inner").mkdir(parents=True)
    for path in (made / "inner", made):
        os.utime(path, (time.time() - age, time.time() - age))
    return made


def lost(session: Session, held: lease.Claim) -> Job:
    job = session.get(Job, held.job_id)
    assert job is not None
    service.lose(session, job, max_attempts=3, backoff=(0.0,))
    return job


def test_only_what_nobody_reads_again_is_removed(session: Session, settings: Settings) -> None:
    work = settings.work
    running = attempt(session, work)
    dead = attempt(session, work)
    lost(session, dead)
    resumable = attempt(session, work)
    event = SnapshotEvent(step=2, folder=str(work / str(resumable.fence)), manifest_sha256="0" * 64)
    lease.add_snapshot(session, resumable, event)
    job = lost(session, resumable)

    assert {p.name for p in dead_folders(session, work)} == {str(dead.fence)}
    sweep(session, settings)
    assert {p.name for p in work.iterdir()} == {str(running.fence), str(resumable.fence)}

    job.state = JobState.QUEUED
    service.end(session, job, JobState.CANCELLED)  # nobody resumes it any more
    sweep(session, settings)
    assert {p.name for p in work.iterdir()} == {str(running.fence)}


def test_what_a_failed_job_left_stays_until_another_went_on_from_it(
    session: Session, settings: Settings
) -> None:
    def names() -> set[str]:
        sweep(session, settings)
        return {path.name for path in settings.work.iterdir()}

    def snapshot(held: lease.Claim, step: int) -> None:
        at = str(settings.work / str(held.fence))
        event = SnapshotEvent(step=step, folder=at, manifest_sha256="0" * 64)
        lease.add_snapshot(session, held, event)

    first = attempt(session, settings.work)
    snapshot(first, 2)
    lease.fail(session, first, ErrorEvent(error="disk_full", message="x"))
    assert names() == {str(first.fence)}
    service.retry(session, first.job_id)
    second = lease.claim(session, Queue.CPU, worker="w", host="h", lease_seconds=30)
    assert second is not None
    folder(settings.work, str(second.fence))
    assert names() == {str(first.fence), str(second.fence)}
    snapshot(second, 4)
    snapshot(second, 6)  # with it, none of the first attempt's is among the newest two
    assert names() == {str(second.fence)}
    lease.succeed(session, second, {})
    assert names() == set()


def test_what_nobody_tries_again_goes_after_a_week_or_when_it_is_discarded(
    session: Session, settings: Settings
) -> None:
    kept = []
    for _ in range(2):
        held = attempt(session, settings.work)
        at = str(settings.work / str(held.fence))
        event = SnapshotEvent(step=2, folder=at, manifest_sha256="0" * 64)
        lease.add_snapshot(session, held, event)
        lease.fail(session, held, ErrorEvent(error="disk_full", message="x"))
        kept.append(held)
    week = text("update jobs set ended_at = ended_at - interval '7 days' where id = :id")
    session.execute(week, {"id": kept[0].job_id})
    sweep(session, settings)
    assert [path.name for path in settings.work.iterdir()] == [str(kept[1].fence)]
    discard(session, kept[1].job_id)
    sweep(session, settings)
    assert list(settings.work.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "age", "gone"),
    [
        ("987654321", UNKNOWN_SECONDS - 60, False),
        ("987654321", UNKNOWN_SECONDS + 60, True),
        ("hub-3", SHARED_SECONDS - 60, False),
        ("hub-3", SHARED_SECONDS + 60, True),
    ],
)
def test_what_no_row_names_goes_by_age(
    session: Session, settings: Settings, name: str, age: float, *, gone: bool
) -> None:
    made = folder(settings.work, name, age=age)
    sweep(session, settings)
    assert made.exists() is not gone


def test_workers_not_seen_for_a_day_are_forgotten(session: Session, settings: Settings) -> None:
    for name in ("old", "new"):
        lease.still_here(session, name, Queue.CPU, host="h")
    session.execute(
        text("update workers set seen_at = seen_at - interval '2 days' where name = 'old'")
    )
    sweep(session, settings)
    assert list(session.scalars(select(Worker.name))) == ["new"]
    lease.gone(session, "new")
    assert list(session.scalars(select(Worker.name))) == []
