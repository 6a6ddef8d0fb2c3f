"""One job a graphics card, with made-up cards: the lock goes with the last process that has it."""

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.db.session import transaction
from app.jobs import service
from app.jobs.models import Job
from app.jobs.nudge import Broker
from app.settings import Settings
from app.specs.jobs import JobKind, JobState, Queue
from tests.support.probe_tasks import ProbeInputs, ProbeTask
from tests.workers.job.test_supervisor import ProbeSpec, wait_until_step
from workers.job import gpu
from workers.job.gpu import take_gpu, visible_gpus
from workers.job.supervisor import Supervisor

CARDS = ("GPU-aaaa-1", "GPU-bbbb-2")
Factory = sessionmaker[Session]


def test_each_card_is_taken_once_and_given_back(tmp_path: Path) -> None:
    with (
        take_gpu(CARDS, tmp_path) as first,  # type: ignore[union-attr] # both are free
        take_gpu(CARDS, tmp_path) as second,  # type: ignore[union-attr]
    ):
        assert (first.uuid, second.uuid) == CARDS
        assert take_gpu(CARDS, tmp_path) is None
    again = take_gpu(CARDS, tmp_path)
    assert again is not None
    with again:
        assert again.uuid == CARDS[0]


def test_a_child_that_outlives_its_supervisor_keeps_the_card(tmp_path: Path) -> None:
    lock = take_gpu(CARDS[:1], tmp_path)
    assert lock is not None
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,)
    )
    with lock:
        pass  # the supervisor's own descriptor is closed, as by a kill
    assert take_gpu(CARDS[:1], tmp_path) is None
    child.kill()
    child.communicate()
    free = take_gpu(CARDS[:1], tmp_path)
    assert free is not None
    with free:
        pass


def test_a_lock_is_never_opened_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / CARDS[0]).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        take_gpu(CARDS, tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, CARDS),
        ("1", CARDS[1:]),
        ("GPU-bbbb,0", (CARDS[1], CARDS[0])),
        ("7", ()),
        ("", ()),
        ("-1", ()),
    ],
)
def test_cuda_visible_devices_is_respected(
    chosen: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_installed", lambda: CARDS)
    settings = Settings().model_copy(update={"cuda_visible_devices": chosen})
    assert visible_gpus(settings) == expected


def test_two_workers_of_one_card_take_turns(
    factory: Factory, settings: Settings, tmp_path: Path
) -> None:
    fast = settings.model_copy(update={"heartbeat_seconds": 0.2, "lock_dir": tmp_path / "locks"})
    ids = []
    for n in (1, 2):
        probe = ProbeInputs(steps=400, seconds=0.05)
        spec = ProbeSpec(name="p", teacher_id=1, student_id=2, dataset_version_id=3, probe=probe)
        with transaction(factory) as session:
            wanted = service.JobRequest(
                kind=JobKind.TRAIN, spec=spec, stream=f"run:{n}", title=f"Train {n}"
            )
            ids.append(service.enqueue(session, wanted).id)
    task = ProbeTask()
    workers = [
        Supervisor(
            task_of=lambda _: task,
            factory=factory,
            broker=Broker(settings.require_redis_url()),
            settings=fast,
            queue=Queue.GPU,
            worker=f"w{n}",
            child_module="tests.support.probe_tasks",
            gpus=CARDS[:1],
        )
        for n in (1, 2)
    ]
    thread = threading.Thread(target=workers[0].run_next)
    thread.start()
    wait_until_step(factory, ids[0], 2)
    assert workers[1].run_next() is False, "the card is taken"
    with transaction(factory) as session:
        waiting = session.get(Job, ids[1])
        assert waiting is not None
        assert (waiting.state, waiting.attempt) == (JobState.QUEUED, 0)
        service.request_cancel(session, ids[0], "keep")
    thread.join(20)
    assert [result["gpu"] for result in task.applied] == [CARDS[0]]
    thread = threading.Thread(target=workers[1].run_next)
    thread.start()
    wait_until_step(factory, ids[1], 2)
    with transaction(factory) as session:
        service.request_cancel(session, ids[1], "keep")
    thread.join(20)
    assert [result["gpu"] for result in task.applied] == [CARDS[0]] * 2


@pytest.mark.parametrize("busy", [False, True])
def test_a_job_that_can_use_more_cards_gets_those_that_are_free(
    factory: Factory, settings: Settings, tmp_path: Path, *, busy: bool
) -> None:
    fast = settings.model_copy(update={"heartbeat_seconds": 0.2, "lock_dir": tmp_path / "locks"})
    probe = ProbeInputs(steps=400, seconds=0.05, cards=3)
    spec = ProbeSpec(name="p", teacher_id=1, student_id=2, dataset_version_id=3, probe=probe)
    with transaction(factory) as session:
        wanted = service.JobRequest(kind=JobKind.TRAIN, spec=spec, stream="run:1", title="Train 1")
        job_id = service.enqueue(session, wanted).id
    task = ProbeTask()
    worker = Supervisor(
        task_of=lambda _: task,
        factory=factory,
        broker=Broker(settings.require_redis_url()),
        settings=fast,
        queue=Queue.GPU,
        worker="w",
        child_module="tests.support.probe_tasks",
        gpus=CARDS,
    )
    with contextlib.ExitStack() as others:
        if busy:
            lock = take_gpu(CARDS[1:], fast.lock_dir)
            assert lock is not None
            others.enter_context(lock)
        thread = threading.Thread(target=worker.run_next)
        thread.start()
        wait_until_step(factory, job_id, 2)
        assert take_gpu(CARDS, fast.lock_dir) is None, "they are its own while it works"
        with transaction(factory) as session:
            service.request_cancel(session, job_id, "keep")
        thread.join(20)
    assert [result["gpu"] for result in task.applied] == [CARDS[0] if busy else ",".join(CARDS)]
    for card in CARDS:
        free = take_gpu([card], fast.lock_dir)
        assert free is not None
        with free:
            pass
