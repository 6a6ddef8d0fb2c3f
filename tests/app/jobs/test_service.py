"""Jobs in the database: states, dependencies, fences, cancels, reaping."""

import threading

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.hooks import take_signals
from app.db.session import make_engine, make_session_factory, transaction
from app.errors import Conflict
from app.events.append import add_points
from app.events.queries import events_after, series
from app.jobs import lease, service
from app.jobs.models import Job, JobAttempt, JobSnapshot
from app.jobs.snapshots import discard, left_by
from app.specs.events import ErrorEvent, SnapshotEvent
from app.specs.jobs import CancelMode, FreezeJob, JobKind, JobState, Queue

BACKOFF = (5.0, 20.0)


def request(key: str | None = None, depends_on: tuple[int, ...] = ()) -> service.JobRequest:
    return service.JobRequest(
        kind=JobKind.FREEZE,
        spec=FreezeJob(dataset_version_id=1),
        stream="version:1",
        title="Freeze traffic v1",
        idempotency_key=key,
        depends_on=depends_on,
    )


def claim(session: Session, worker: str = "w1") -> lease.Claim | None:
    return lease.claim(session, Queue.CPU, worker=worker, host="h", lease_seconds=30)


def must_claim(session: Session) -> lease.Claim:
    held = claim(session)
    assert held is not None
    return held


def expire(session: Session, job_id: int) -> None:
    session.execute(
        text(
            "update job_leases set lease_until = clock_timestamp() - interval '1 s' where job_id = :j"
        ),
        {"j": job_id},
    )


def test_a_job_goes_from_queued_to_succeeded_and_says_so(session: Session) -> None:
    job = service.enqueue(session, request())
    assert ("nudge", "cpu") in take_signals(session)
    held = must_claim(session)
    assert held.job_id == job.id
    lease.running(session, held)
    lease.succeed(session, held, {"n": 1})
    session.refresh(job)
    assert (job.state, job.result) == (JobState.SUCCEEDED, {"n": 1})
    states = [e.payload["state"] for e in events_after(session, ["version:1"], 0)]
    assert states == ["queued", "starting", "running", "succeeded"]
    assert claim(session) is None


def test_a_terminal_state_never_changes(session: Session) -> None:
    job = service.enqueue(session, request())
    lease.succeed(session, must_claim(session), {})
    with pytest.raises(DBAPIError, match="may not go from succeeded to queued"):
        session.execute(text("update jobs set state = 'queued' where id = :j"), {"j": job.id})


def test_dependents_wait_then_start_or_fail_with_their_upstream(session: Session) -> None:
    first = service.enqueue(session, request())
    second = service.enqueue(session, request(depends_on=(first.id,)))
    third = service.enqueue(session, request(depends_on=(second.id,)))
    assert second.state == JobState.BLOCKED
    lease.succeed(session, must_claim(session), {})
    session.refresh(second)
    assert second.state == JobState.QUEUED
    lease.fail(session, must_claim(session), ErrorEvent(error="X", message="x"))
    session.refresh(third)
    assert (third.state, third.error) == (JobState.FAILED, "upstream_failed")
    with pytest.raises(Conflict):
        service.enqueue(session, request(depends_on=(third.id,)))


def test_an_idempotency_key_gives_the_same_job(session: Session) -> None:
    session.execute(
        text(
            "insert into projects (slug, name, goal, description, deciding_metric, tolerance, version)"
            " values ('p', 'p', 'cost_cut', '', 'exact_match', 2, 1)"
        )
    )
    project = session.scalar(text("select id from projects"))
    twice = service.JobRequest(**{**_fields(request("once")), "project_id": project})
    assert service.enqueue(session, twice).id == service.enqueue(session, twice).id


def _fields(wanted: service.JobRequest) -> dict[str, object]:
    return {name: getattr(wanted, name) for name in wanted.__slots__}


def test_a_fenced_worker_can_write_nothing(session: Session) -> None:
    service.enqueue(session, request())
    old = must_claim(session)
    expire(session, old.job_id)
    assert service.reap(session, max_attempts=3, backoff=BACKOFF) == 1
    session.execute(text("update jobs set not_before = null"))
    new = must_claim(session)
    assert new.fence > old.fence
    for write in (
        lambda: lease.guard(session, old, 30),
        lambda: lease.heartbeat(session, old, 30),
        lambda: lease.succeed(session, old, {}),
        lambda: lease.fail(session, old, ErrorEvent(error="X", message="x")),
        lambda: lease.release(session, old),
    ):
        with pytest.raises(lease.Fenced):
            write()
    lease.succeed(session, new, {})


def test_losing_the_worker_three_times_without_progress_ends_the_job(session: Session) -> None:
    job = service.enqueue(session, request())
    for n in range(3):
        session.execute(text("update jobs set not_before = null"))
        session.expire(job)
        held = must_claim(session)
        assert held.attempt == n + 1
        expire(session, job.id)
        service.reap(session, max_attempts=3, backoff=BACKOFF)
    assert (job.state, job.error) == (JobState.FAILED, "lost")
    outcomes = session.scalars(select(JobAttempt.outcome).where(JobAttempt.job_id == job.id))
    assert list(outcomes) == ["lost"] * 3


def test_a_snapshot_resets_the_count_of_losses_and_is_what_the_next_attempt_gets(
    session: Session,
) -> None:
    job = service.enqueue(session, request())
    for n in range(4):
        session.execute(text("update jobs set not_before = null"))
        session.expire(job)
        held = must_claim(session)
        assert [s[0] for s in held.snapshots] == list(range(n, 0, -1))[:2]
        event = SnapshotEvent(step=n + 1, folder="/f", manifest_sha256="0" * 64)
        lease.add_snapshot(session, held, event)
        session.expire(job)
        expire(session, job.id)
        service.reap(session, max_attempts=3, backoff=BACKOFF)
    assert job.state == JobState.QUEUED


def test_only_the_newest_two_snapshots_and_the_best_keep_their_rows(session: Session) -> None:
    job = service.enqueue(session, request())
    held = must_claim(session)
    for step in range(1, 7):
        event = SnapshotEvent(
            step=step, folder=f"/{step}", manifest_sha256="0" * 64, best=step in (1, 2)
        )
        lease.add_snapshot(session, held, event)
    rows = session.scalars(select(JobSnapshot.step).where(JobSnapshot.job_id == job.id))
    assert sorted(rows) == [2, 5, 6]


def test_a_resume_from_an_older_snapshot_takes_back_what_lies_beyond_it(session: Session) -> None:
    job = service.enqueue(session, request())
    first = must_claim(session)
    for step in (2, 4):
        event = SnapshotEvent(step=step, folder="/f", manifest_sha256="0" * 64)
        lease.add_snapshot(session, first, event)
    points = {step: {"train/loss": 1.0} for step in range(1, 6)}
    add_points(session, "version:1", job_id=job.id, fence=first.fence, steps=points)
    lease.release(session, first)
    second = must_claim(session)
    assert [step for step, _ in series(session, [job.id])["train/loss"]] == [1, 2, 3, 4]
    lease.resumed(session, second, 2)
    assert [step for step, _ in series(session, [job.id])["train/loss"]] == [1, 2]
    attempt = session.get_one(JobAttempt, second.fence)
    session.refresh(attempt)
    assert attempt.resumed_from_step == 2
    rows = session.scalars(select(JobSnapshot.step).where(JobSnapshot.job_id == job.id))
    assert list(rows) == [2]


def test_cancel_is_immediate_while_waiting_and_cancelling_while_running(session: Session) -> None:
    waiting = service.enqueue(session, request())
    service.request_cancel(session, waiting.id, "keep")
    assert waiting.state == JobState.CANCELLED
    job = service.enqueue(session, request())
    held = must_claim(session)
    lease.running(session, held)
    service.request_cancel(session, job.id, "discard")
    assert lease.heartbeat(session, held, 30) == "discard"
    lease.succeed(session, held, {"kept": True})
    session.refresh(job)
    assert (job.state, job.result) == (JobState.CANCELLED, {"kept": True})
    with pytest.raises(Conflict, match="already ended"):
        service.request_cancel(session, job.id, "keep")


def test_retry_makes_a_new_job_with_a_parent(session: Session) -> None:
    job = service.enqueue(session, request())
    with pytest.raises(Conflict):
        service.retry(session, job.id)
    lease.fail(session, must_claim(session), ErrorEvent(error="X", message="x"))
    again = service.retry(session, job.id)
    assert (again.parent_id, again.state, again.spec) == (job.id, JobState.QUEUED, job.spec)


def trained(session: Session, steps: int = 5) -> lease.Claim:
    """Return an attempt with points up to `steps` and snapshots of the even ones."""
    job = service.enqueue(session, request())
    held = must_claim(session)
    for step in range(2, steps + 1, 2):
        event = SnapshotEvent(step=step, folder=f"/{step}", manifest_sha256="0" * 64)
        lease.add_snapshot(session, held, event)
    points = {step: {"train/loss": 1.0} for step in range(1, steps + 1)}
    add_points(session, "version:1", job_id=job.id, fence=held.fence, steps=points)
    return held


def test_a_retry_goes_on_from_what_the_failed_job_left(session: Session) -> None:
    first = trained(session)
    lease.fail(session, first, ErrorEvent(error="disk_full", message="x"))
    again = service.retry(session, first.job_id)
    assert left_by(session, first.job_id) == []
    assert [step for step, _ in series(session, [again.id])["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in series(session, [first.job_id])["train/loss"]] == [5]
    held = must_claim(session)
    assert (held.job_id, [step for step, _, _ in held.snapshots]) == (again.id, [4, 2])
    assert session.get_one(JobAttempt, held.fence).resumed_from_step == 4
    # It fails as well, and a third one goes on from the newest of both.
    event = SnapshotEvent(step=6, folder="/6", manifest_sha256="0" * 64)
    lease.add_snapshot(session, held, event)
    lease.fail(session, held, ErrorEvent(error="disk_full", message="x"))
    service.retry(session, again.id)
    assert [step for step, _, _ in must_claim(session).snapshots] == [6, 4]


@pytest.mark.parametrize(
    ("mode", "error", "left"),
    [
        ("keep", "cancelled", True),  # it did not end in time
        ("discard", "cancelled", False),
        (None, "out_of_memory", True),
        (None, "SnapshotError", False),  # none was sound: who tries again starts anew
    ],
)
def test_what_a_job_leaves_depends_on_how_it_ended(
    session: Session, mode: CancelMode | None, error: str, left: bool
) -> None:
    held = trained(session)
    if mode is not None:
        service.request_cancel(session, held.job_id, mode)
    lease.fail(session, held, ErrorEvent(error=error, message="x"))
    assert bool(left_by(session, held.job_id)) is left
    again = service.retry(session, held.job_id)
    assert bool(must_claim(session).snapshots) is left
    assert bool(series(session, [again.id])) is left


def test_what_became_a_result_or_was_stopped_in_the_queue_is_left_or_not(session: Session) -> None:
    held = trained(session)
    service.request_cancel(session, held.job_id, "keep")
    lease.succeed(session, held, {"folder": "x"})
    assert left_by(session, held.job_id) == []
    waits = trained(session)
    lease.release(session, waits)
    service.request_cancel(session, waits.job_id, "keep")
    assert [row.step for row in left_by(session, waits.job_id)] == [4, 2]
    assert discard(session, waits.job_id)
    assert not discard(session, waits.job_id)


def test_concurrent_claims_take_each_job_once(own_database: str) -> None:
    engine = make_engine(own_database, pool_size=8)
    factory = make_session_factory(engine)
    with transaction(factory) as session:
        made = {service.enqueue(session, request()).id for _ in range(20)}
    taken: list[int] = []

    def work(name: str) -> None:
        while True:
            with transaction(factory) as session:
                held = claim(session, name)
            if held is None:
                return
            taken.append(held.job_id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction(factory) as session:
        attempts = session.scalars(select(Job.attempt)).all()
    engine.dispose()
    assert sorted(taken) == sorted(made)
    assert set(attempts) == {1}
