"""Several workers fill one cache: who gets what, and what becomes of it when one fails."""

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.models import Job, Worker
from app.jobs.service import end
from app.runs import queries, service
from app.runs.queries import RunView
from app.settings import Settings
from app.specs.jobs import JobKind, JobState
from tests.app.runs.conftest import Bench
from tests.support import made_rows

LARGE = {"splits": {"train": 400, "validation": 40, "test": 40}}


@pytest.fixture
def bench(session: Session, settings: Settings) -> Bench:
    session.add_all(Worker(name=f"gpu-{n}", queue="gpu", host="h") for n in range(2))
    session.add(Worker(name="cpu-0", queue="cpu", host="h"))
    session.flush()
    return Bench(session, settings, **LARGE)


def start(bench: Bench, name: str = "kd") -> RunView:
    spec = bench.spec().model_copy(update={"name": name})
    run, _ = service.start(bench.session, bench.project, spec, owner="ada")
    return view(bench, run.number)


def view(bench: Bench, number: int) -> RunView:
    bench.session.flush()
    found = queries.by_number(bench.session, bench.project.id, number)
    assert found is not None
    return found


def captures(bench: Bench) -> list[Job]:
    statement = select(Job).where(Job.kind == JobKind.PRECOMPUTE).order_by(Job.id)
    return list(bench.session.scalars(statement))


def test_each_worker_gets_a_share_and_one_job_completes_the_cache(bench: Bench) -> None:
    run = start(bench)
    jobs = captures(bench)
    assert [(job.spec["part"], job.spec["parts"]) for job in jobs] == [(0, 2), (1, 2), (None, 1)]
    assert [job.state for job in jobs] == ["queued", "queued", "blocked"]
    assert [job.title.partition(", ")[2] for job in jobs] == ["part 1 of 2", "part 2 of 2", ""]
    phase = run.phase("precompute")
    assert phase is not None
    assert phase.job == jobs[2]
    for job in jobs[:2]:
        made_rows.bring_to(bench.session, job.id, JobState.RUNNING)
        end(bench.session, job, JobState.SUCCEEDED)
    assert jobs[2].state == "queued"


def test_a_second_run_waits_for_the_same_jobs(bench: Bench) -> None:
    start(bench)
    other = start(bench, "kd-2")
    assert len(captures(bench)) == 3
    phase = other.phase("precompute")
    assert phase is not None
    assert [job.id for job in phase.jobs] == [job.id for job in captures(bench)]


def test_little_or_nothing_missing_is_one_job(session: Session, bench: Bench) -> None:
    small = Bench(session, bench.settings, splits={"train": 200, "validation": 5, "test": 9})
    start(small)
    assert [job.spec["part"] for job in captures(small)] == [None]
    bench.captured(entries=440, missing_entries=10, missing_rows=300)
    start(bench)
    assert [job.spec["part"] for job in captures(bench)] == [None, None]
    bench.captured(entries=440, missing_entries=300, missing_rows=9000)
    start(bench, "again")
    assert len(captures(bench)) == 2, "the one that is on its way serves"


def test_one_worker_shares_with_nobody(session: Session, settings: Settings) -> None:
    session.add(Worker(name="gpu-0", queue="gpu", host="h"))
    alone = Bench(session, settings, **LARGE)
    start(alone)
    assert [job.spec["part"] for job in captures(alone)] == [None]


def test_a_part_that_fails_is_what_the_run_shows_and_trying_again_needs_no_parts(
    bench: Bench,
) -> None:
    run = start(bench)
    first = captures(bench)[0]
    made_rows.bring_to(bench.session, first.id, JobState.RUNNING)
    end(bench.session, first, JobState.FAILED, error="UserError", message="The teacher is gone.")
    failed = view(bench, run.run.number)
    assert failed.state == "failed"
    assert failed.failure is not None
    assert failed.failure.error_message == "The teacher is gone."
    again = service.retry(bench.session, failed, owner="ada")
    assert [(job.kind, job.spec.get("part"), job.state) for job in again] == [
        ("precompute", None, "queued"),
        ("train", None, "blocked"),
    ]


def test_a_cancelled_run_takes_its_parts_along(bench: Bench) -> None:
    run = start(bench)
    made_rows.bring_to(bench.session, captures(bench)[0].id, JobState.RUNNING)
    service.cancel(bench.session, view(bench, run.run.number), "keep")
    assert [job.state for job in captures(bench)] == ["cancelling", "cancelled", "cancelled"]


def test_parts_that_another_run_waits_for_go_on(bench: Bench) -> None:
    run = start(bench)
    start(bench, "kd-2")
    service.cancel(bench.session, view(bench, run.run.number), "keep")
    assert [job.state for job in captures(bench)] == ["queued", "queued", "blocked"]


def test_the_estimate_shares_the_capture_among_the_workers(bench: Bench) -> None:
    spec = {"teacher_id": bench.teacher.id}
    for _ in range(3):
        bench.past(JobKind.PRECOMPUTE, spec, {"report": {"new_rows": 100, "seconds": 1}}, took=1)
    found = bench.look(bench.spec())
    part = next(part for part in found.parts if part.phase == "precompute")
    assert found.cache is not None
    assert part.basis.startswith("Shared by 2 workers.")
    assert part.seconds is not None
    assert part.seconds.middle == pytest.approx(found.cache.missing_tokens / 200, rel=0.05)
