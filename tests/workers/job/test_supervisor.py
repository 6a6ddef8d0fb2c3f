"""Real child processes under a supervisor: success, named failure, kill -9, cancel, drain."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from app.db.session import transaction
from app.events.queries import series
from app.jobs import service
from app.jobs.models import Job, JobAttempt
from app.jobs.nudge import Broker
from app.settings import Settings
from app.specs.jobs import JobKind, JobState, Queue
from app.specs.training import RunSpec
from tests.support.probe_tasks import ProbeInputs, ProbeTask
from workers.job.child import EXIT_STOPPED
from workers.job.supervisor import ROOT, JobHand, Supervisor

Factory = sessionmaker[Session]


class ProbeSpec(RunSpec):
    probe: ProbeInputs


def supervisor(factory: Factory, settings: Settings, task: ProbeTask) -> Supervisor:
    fast = settings.model_copy(update={"heartbeat_seconds": 0.2, "backoff_seconds": (0.0,)})
    return Supervisor(
        task_of=lambda _: task,
        factory=factory,
        broker=Broker(settings.require_redis_url()),
        settings=fast,
        queue=Queue.GPU,
        worker="w1",
        child_module="tests.support.probe_tasks",
    )


def enqueue(factory: Factory, **probe: object) -> int:
    spec = ProbeSpec(
        name="p",
        teacher_id=1,
        student_id=2,
        dataset_version_id=3,
        probe=ProbeInputs.model_validate(probe),
    )
    with transaction(factory) as session:
        wanted = service.JobRequest(kind=JobKind.TRAIN, spec=spec, stream="run:1", title="Train")
        return service.enqueue(session, wanted).id


def job_of(factory: Factory, job_id: int) -> Job:
    with transaction(factory) as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job


def test_a_resume_that_falls_back_says_so_and_leaves_one_curve(
    factory: Factory, settings: Settings
) -> None:
    job_id = enqueue(factory, steps=400, seconds=0.05, mode="fall_back")
    drain = threading.Event()
    sup = supervisor(factory, settings, ProbeTask())
    sup.should_drain = drain.is_set
    thread = threading.Thread(target=sup.run_next)
    thread.start()
    wait_until_step(factory, job_id, 7)
    drain.set()
    thread.join(20)
    with transaction(factory) as session:
        # What an attempt now under way would read again: both kept snapshots, and points beyond.
        kept = session.scalars(text("select step from job_snapshots order by step")).all()
        session.execute(text("update jobs set spec = jsonb_set(spec, '{probe,steps}', '1')"))
    assert len(kept) == 2
    sup = supervisor(factory, settings, ProbeTask())
    assert sup.run_next() is True
    with transaction(factory) as session:
        steps = [step for step, _ in series(session, [job_id])["train/loss"]]
        resumed = session.scalar(text("select max(resumed_from_step) from job_attempts"))
        left = session.scalars(text("select step from job_snapshots")).all()
    assert (resumed, left) == (kept[0], [kept[0]])
    assert steps == list(range(1, kept[0] + 1))


def wait_until_step(factory: Factory, job_id: int, step: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with transaction(factory) as session:
            points = series(session, [job_id]).get("train/loss", [])
        if points and points[-1][0] >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"job {job_id} never reached step {step}")


def test_a_job_is_carried_out_and_its_points_are_stored(
    factory: Factory, settings: Settings
) -> None:
    task = ProbeTask()
    job_id = enqueue(factory, steps=5)
    assert supervisor(factory, settings, task).run_next() is True
    job = job_of(factory, job_id)
    assert (job.state, job.phase) == (JobState.SUCCEEDED, "train")
    assert job.progress is not None
    assert job.progress["done"] == 5
    with transaction(factory) as session:
        assert [step for step, _ in series(session, [job_id])["train/loss"]] == [1, 2, 3, 4, 5]
    assert task.applied == [{"stopped_at": None, "started_from": 0}]
    assert supervisor(factory, settings, task).run_next() is False


def test_a_child_that_cannot_be_started_fails_the_job_at_once(
    factory: Factory, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobHand, "_request", lambda *_: {"seed": 2**70})
    job_id = enqueue(factory)
    supervisor(factory, settings, ProbeTask()).run_next()
    job = job_of(factory, job_id)
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, "not_started", 1)
    assert "Integer exceeds 64-bit range" in str(job.error_message)


def test_a_named_failure_is_shown_and_not_retried(factory: Factory, settings: Settings) -> None:
    job_id = enqueue(factory, mode="user_error")
    supervisor(factory, settings, ProbeTask()).run_next()
    job = job_of(factory, job_id)
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, "UserError", 1)
    assert job.error_message == "The learning rate is not a number."


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("disk_full", "disk_full", r"The disk of .*/\d+ is full: free [\d,]+ MiB there, then Try"),
        ("full_snapshot", "disk_full", r"^The disk of /there is full: free 9 MiB there, then Try"),
        ("no_memory", "out_of_memory", r"^Step 4: not even one conversation fits"),
        ("no_cpu_memory", "out_of_memory", r"^The body ran out of memory. Turn gradient check"),
        ("too_long", "ContextLengthError", r"^Conversation c1 has 300 tokens, and the student"),
    ],
)
def test_what_ran_out_is_named_with_its_mend_and_what_was_done_is_kept(
    factory: Factory, settings: Settings, mode: str, error: str, words: str
) -> None:
    job_id = enqueue(factory, steps=4, mode=mode)
    supervisor(factory, settings, ProbeTask()).run_next()
    job = job_of(factory, job_id)
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, error, 1)
    assert re.search(words, job.error_message or "")
    with transaction(factory) as session:
        kept = session.scalars(text("select folder from job_snapshots order by step")).all()
        oom = session.scalar(select(JobAttempt.oom))
    assert [Path(folder).name for folder in kept] == ["step-2", "step-4"]
    assert all(Path(folder).is_dir() for folder in kept)
    assert oom == (error == "out_of_memory")


def test_a_failed_job_leaves_its_snapshots_alone_and_the_next_one_goes_on(
    factory: Factory, settings: Settings
) -> None:
    job_id = enqueue(factory, steps=5, mode="fail_late")
    task = ProbeTask()
    supervisor(factory, settings, task).run_next()
    job = job_of(factory, job_id)
    assert (job.state, job.error_message) == (JobState.FAILED, "The disk is full.")
    [folder] = settings.work.iterdir()
    assert folder.name == str(job.fence)
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]
    with transaction(factory) as session:
        again = service.retry(session, job_id)
        counting = text("update jobs set spec = jsonb_set(spec, '{probe,mode}', '\"count\"')")
        session.execute(counting)
    supervisor(factory, settings, task).run_next()
    assert task.applied == [{"stopped_at": None, "started_from": 4}]
    with transaction(factory) as session:
        assert [step for step, _ in series(session, [again.id])["train/loss"]] == [1, 2, 3, 4, 5]


def test_a_child_killed_from_outside_is_lost_and_gives_up_after_three(
    factory: Factory, settings: Settings
) -> None:
    job_id = enqueue(factory, mode="kill_self")
    sup = supervisor(factory, settings, ProbeTask())
    for _ in range(3):
        assert sup.run_next() is True
    job = job_of(factory, job_id)
    assert (job.state, job.error, job.attempt) == (JobState.FAILED, "lost", 3)
    with transaction(factory) as session:
        ends = session.execute(select(JobAttempt.signal, JobAttempt.exit_code)).all()
    assert [tuple(row) for row in ends] == [(9, None)] * 3
    assert sup.run_next() is False


@pytest.mark.parametrize(("mode", "kept"), [("keep", True), ("discard", False)])
def test_cancel_stops_the_child_and_keeps_or_discards(
    factory: Factory, settings: Settings, mode: str, kept: bool
) -> None:
    task = ProbeTask()
    job_id = enqueue(factory, steps=400, seconds=0.05)
    sup = supervisor(factory, settings, task)
    thread = threading.Thread(target=sup.run_next)
    thread.start()
    wait_until_step(factory, job_id, 2)
    with transaction(factory) as session:
        service.request_cancel(session, job_id, mode)  # type: ignore[arg-type] # parametrized
    thread.join(20)
    assert not thread.is_alive()
    assert job_of(factory, job_id).state == JobState.CANCELLED
    assert bool(task.applied) is kept


def test_a_body_without_partial_results_is_cancelled_by_asking(
    factory: Factory, settings: Settings
) -> None:
    task = ProbeTask()
    job_id = enqueue(factory, steps=400, seconds=0.05, mode="all_or_nothing")
    sup = supervisor(factory, settings, task)
    thread = threading.Thread(target=sup.run_next)
    thread.start()
    wait_until_step(factory, job_id, 2)
    with transaction(factory) as session:
        service.request_cancel(session, job_id, "keep")
    thread.join(20)
    assert job_of(factory, job_id).state == JobState.CANCELLED
    assert not task.applied
    with transaction(factory) as session:
        code = session.scalar(text("select exit_code from job_attempts"))
    assert code == EXIT_STOPPED, "ended by itself, not by a kill"


@pytest.mark.parametrize("mode", ["count", "all_or_nothing"])
def test_a_drained_worker_gives_the_job_back_without_counting_it(
    factory: Factory, settings: Settings, mode: str
) -> None:
    job_id = enqueue(factory, steps=400, seconds=0.05, mode=mode)
    sup = supervisor(factory, settings, ProbeTask())
    drain = threading.Event()
    sup.should_drain = drain.is_set
    thread = threading.Thread(target=sup.run_next)
    thread.start()
    wait_until_step(factory, job_id, 2)
    drain.set()
    thread.join(20)
    job = job_of(factory, job_id)
    assert (job.state, job.lost_in_a_row) == (JobState.QUEUED, 0)


WORKER = """
import sys
from app.db.session import make_engine, make_session_factory
from app.jobs.nudge import Broker
from app.settings import Settings
from app.specs.jobs import Queue
from tests.support.probe_tasks import ProbeTask
from workers.job.supervisor import Supervisor
settings = Settings(home=sys.argv[1], database_url=sys.argv[2], redis_url=sys.argv[3],
    heartbeat_seconds=0.2, lease_seconds=float(sys.argv[4]))
task = ProbeTask()
Supervisor(task_of=lambda _: task, factory=make_session_factory(make_engine(sys.argv[2])),
    broker=Broker(sys.argv[3]), settings=settings, queue=Queue.GPU, worker="killed",
    child_module="tests.support.probe_tasks").run_next()
"""


def test_kill_9_of_the_worker_takes_its_child_along_and_another_resumes_from_the_snapshot(
    factory: Factory, settings: Settings, own_database: str, tmp_path: Path
) -> None:
    marker = tmp_path / "pids"
    job_id = enqueue(factory, steps=30, seconds=0.05, marker=str(marker))
    redis_url = settings.require_redis_url()
    arguments = [str(settings.home), own_database, redis_url, "2"]
    worker = subprocess.Popen([sys.executable, "-c", WORKER, *arguments], cwd=ROOT)
    wait_until_step(factory, job_id, 7)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    child = int(marker.read_text().split()[0])
    deadline = time.monotonic() + 15
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(child)

    time.sleep(2.2)  # the lease of the dead worker runs out
    with transaction(factory) as session:
        assert service.reap(session, max_attempts=3, backoff=(0.0,)) == 1
    task = ProbeTask()
    assert supervisor(factory, settings, task).run_next() is True
    job = job_of(factory, job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert task.applied[0]["started_from"] >= 6
    with transaction(factory) as session:
        steps = [step for step, _ in series(session, [job_id])["train/loss"]]
        rows = session.execute(
            text("select outcome, resumed_from_step from job_attempts order by n")
        ).all()
        assert session.get(JobAttempt, job.fence) is not None
    assert steps == list(range(1, 31))
    assert [row[0] for row in rows] == ["lost", "succeeded"]
    assert rows[1][1] == task.applied[0]["started_from"]
