"""Why a job waits, its place, and who works on what: in words, from the rows alone."""

import pytest
from sqlalchemy import func, text, update
from sqlalchemy.orm import Session

from app.jobs import lease, queries
from app.jobs.models import Job, Worker
from app.jobs.service import JobRequest, enqueue, lose, request_cancel
from app.specs.events import ErrorEvent
from app.specs.jobs import FreezeJob, JobKind, JobState, Queue


def ask(
    session: Session,
    title: str,
    *,
    kind: JobKind = JobKind.FREEZE,
    after: list[int] | None = None,
    priority: int = 0,
) -> Job:
    request = JobRequest(
        kind=kind,
        spec=FreezeJob(dataset_version_id=1),
        stream="version:1",
        title=title,
        owner="ada",
        depends_on=after or (),
        priority=priority,
    )
    return enqueue(session, request)


def start(session: Session, queue: Queue = Queue.CPU, worker: str = "cpu-1") -> lease.Claim:
    held = lease.claim(session, queue, worker=worker, host="box", lease_seconds=30)
    assert held is not None
    lease.seen(session, worker, queue, host="box", job_id=held.job_id)
    lease.running(session, held)
    return held


def line(session: Session, job: Job) -> queries.JobLine:
    session.flush()
    found = queries.one(session, job.id)
    assert found is not None
    return found


def later(session: Session, table: type, key: object, column: str, seconds: int) -> None:
    """Move a time of a row into the past: the database's clock decides, so it is not mocked."""
    past = func.clock_timestamp() - text(f"interval '{seconds} seconds'")
    first = next(iter(table.__mapper__.primary_key))
    session.execute(update(table).where(first == key).values({column: past}))
    session.expire_all()


def test_a_blocked_job_names_what_it_needs(session: Session) -> None:
    first, second = ask(session, "Cache"), ask(session, "Other")
    one = ask(session, "Train", after=[first.id])
    two = ask(session, "Evaluate", after=[first.id, second.id])
    assert line(session, one).reason == "Starts when “Cache” has succeeded."
    assert line(session, two).reason == "Starts when “Cache” and 1 more have succeeded."
    lease.succeed(session, start(session), {})
    assert line(session, two).reason == "Starts when “Other” has succeeded."
    assert line(session, one).job.state == "queued"


def test_without_a_worker_the_reason_says_so_after_a_moment(session: Session) -> None:
    job = ask(session, "Freeze")
    assert line(session, job).reason == "Being handed to a worker."
    later(session, Job, job.id, "created_at", 60)
    assert "No worker has been heard on the cpu queue for 30 s" in line(session, job).reason
    lease.still_here(session, "cpu-1", Queue.CPU, host="box")
    assert line(session, job).reason == "Being handed to a worker."
    later(session, Worker, "cpu-1", "seen_at", 31)
    assert "No worker has been heard" in line(session, job).reason
    assert line(session, job).waited_seconds == pytest.approx(60, abs=5)


def test_positions_follow_priority_then_age_and_the_first_names_what_is_in_front(
    session: Session,
) -> None:
    busy = ask(session, "Long")
    start(session)
    a, b, urgent = ask(session, "A"), ask(session, "B"), ask(session, "Urgent", priority=-1)
    assert [line(session, job).position for job in (urgent, a, b, busy)] == [1, 2, 3, None]
    assert line(session, urgent).reason == "Next. It waits for “Long” on the cpu queue."
    assert line(session, a).reason == "1 job is in front of it."
    assert line(session, b).reason == "2 jobs are in front of it."
    assert [x.job.title for x in queries.open_jobs(session)] == ["Long", "Urgent", "A", "B"]


def test_a_working_job_shows_phase_progress_worker_and_attempt(session: Session) -> None:
    job = ask(session, "Freeze")
    held = start(session)
    lease.set_phase(session, held, "load_teacher")
    lease.set_progress(session, held, {"done": 1500, "total": 2000, "unit": "files"})
    session.expire_all()
    found = line(session, job)
    assert found.reason == "Load teacher; 1,500 of 2,000 files"
    assert (found.worker, found.done_share, found.shown_state) == ("cpu-1", 0.75, "running")
    lose(session, job, max_attempts=3, backoff=[5])
    waiting = line(session, job)
    assert waiting.reason.startswith("Its last worker was lost; it starts again in")
    job.not_before = None
    session.flush()
    start(session, worker="cpu-2")
    session.expire_all()
    again = line(session, job)
    assert again.reason == "Starting; attempt 2, from the beginning"
    assert (again.worker, again.shown_state) == ("cpu-2", "recovering")
    request_cancel(session, job.id, "keep")
    assert line(session, job).reason == "Stopping; what it has is saved."


def test_ended_jobs_say_why_and_come_newest_first(session: Session) -> None:
    b = ask(session, "B")
    lease.succeed(session, start(session), {})
    a = ask(session, "A")
    error = ErrorEvent(error="bad", message="The file is empty.")
    lease.fail(session, start(session), error)
    lines = queries.ended_jobs(session, limit=5)
    assert [x.job.title for x in lines] == ["A", "B"]
    assert lines[0].reason == "The file is empty."
    assert all(x.ran_seconds is not None for x in lines)
    assert lines[1].job is b
    assert queries.find(session, state=JobState.FAILED, project_id=None, limit=5)[0].job is a


def test_workers_are_busy_idle_lost_or_gone(session: Session) -> None:
    ask(session, "Freeze")
    start(session, worker="busy")
    for name, age in (("idle", 0), ("gone", 90), ("old", 4000)):
        lease.still_here(session, name, Queue.GPU, host="box")
        later(session, Worker, name, "seen_at", age)
    found = {w.name: w.state for w in queries.workers(session)}
    assert found == {"busy": "busy", "idle": "idle", "gone": "gone"}
    later(session, Worker, "busy", "seen_at", 31)
    assert [w.state for w in queries.workers(session)] == ["idle", "lost", "gone"]


def test_noting_that_a_worker_lives_keeps_what_it_does(session: Session) -> None:
    job = ask(session, "Freeze")
    start(session)
    lease.still_here(session, "cpu-1", Queue.CPU, host="box")
    assert queries.workers(session)[0].job_id == job.id
