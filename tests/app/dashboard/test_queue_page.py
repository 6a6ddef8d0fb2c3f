"""The queue page: every state, who waits and why, stop and retry, constant queries."""

from collections.abc import Callable

from sqlalchemy import select
from starlette.testclient import TestClient

from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue, request_cancel
from app.runs.models import Run, RunJob
from app.specs.jobs import FreezeJob, JobKind, JobState
from app.web.deps import Services
from tests.support import seeds

PARTIAL = {"HX-Request": "true", "HX-Request-Type": "partial"}


def test_an_empty_queue_says_what_fills_it(signed_in: TestClient) -> None:
    page = signed_in.get("/queue").text
    for words in ("Nothing runs and nothing waits", "Nothing to do", "No worker has been heard"):
        assert words in page
    assert "Ended lately" not in page


def test_jobs_of_every_state_show_reason_owner_project_and_address(
    signed_in: TestClient, parts: Services
) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session, seeds.EVIL)
        running = seeds.job(
            session, project, JobState.RUNNING, title=seeds.EVIL, stream="checkpoint:7"
        )
        spec = FreezeJob(dataset_version_id=2)
        enqueue(
            session,
            JobRequest(
                JobKind.FREEZE, spec, "version:2", "After", project.id, depends_on=[running.id]
            ),
        )
        seeds.job(
            session, project, JobState.FAILED, title="Bad", message="The file <i>is</i> empty."
        )
        waiting = seeds.job(session, project, JobState.QUEUED, kind=JobKind.TRAIN, title="Alone")
        other = seeds.project(session, "Other")
        seeds.job(session, other, JobState.QUEUED, title="Elsewhere")
        run = seeds.run(session, other, 3, state=JobState.FAILED)
        request_cancel(
            session, seeds.job(session, other, JobState.RUNNING, title="Leaving").id, "keep"
        )
    page = signed_in.get("/queue").text
    assert "<script>alert" not in page
    for words in (
        "2 running, 2 queued, 1 blocked",
        "Starts when “&lt;script&gt;",
        f"/projects/{project.slug}/checkpoints/7",
        f"/projects/{project.slug}/datasets/1",
        f"/projects/{other.slug}/runs/{run.number}",
        "The file &lt;i&gt;is&lt;/i&gt; empty.",
        "Stopping; what it has is saved.",
        "cpu-1",
        "st-cancelling",
    ):
        assert words in page, words
    assert page.count("/retry") == 2
    assert "Retry run #3" in page
    only = signed_in.get(f"/queue?project={project.slug}", headers=PARTIAL).text
    assert "Elsewhere" not in only
    assert "Alone" in only
    assert "<html" not in only
    assert waiting.id
    assert signed_in.get("/queue?project=none").status_code == 404


def test_jobs_that_belong_to_no_run_lead_to_what_waits_for_them(
    signed_in: TestClient, parts: Services
) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session, "Routing")
        for number in (1, 2):
            seeds.run(session, project, number, state=JobState.QUEUED)
        cache = seeds.job(
            session, project, JobState.RUNNING, kind=JobKind.PRECOMPUTE, stream="cache:9"
        )
        alone = seeds.job(
            session, project, JobState.QUEUED, kind=JobKind.PRECOMPUTE, stream="cache:10"
        )
        alone.title, cache.title = "For nobody", "For both"
        for run in session.scalars(select(Run)):
            session.add(RunJob(run_id=run.id, job_id=cache.id, role="precompute"))
        seeds.job(session, project, JobState.QUEUED, kind=JobKind.EVALUATE, stream="evaluation:5")
    page = signed_in.get("/queue").text
    assert '<a class="strong" href="/projects/routing/runs/2">For both</a>' in page
    assert 'href="/projects/routing/evaluations/5"' in page
    assert "<b>For nobody</b>" in page


def test_a_queue_that_no_worker_takes_is_named(signed_in: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        seeds.job(session, project, JobState.SUCCEEDED)
        seeds.job(session, project, JobState.QUEUED, kind=JobKind.TRAIN)
    page = signed_in.get("/queue").text
    assert "No worker takes the gpu queue." in page
    assert "No worker takes the cpu queue." not in page


def test_a_job_is_stopped_after_a_question(signed_in: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        train = seeds.job(session, project, JobState.RUNNING, kind=JobKind.TRAIN, title="Train")
        wait = seeds.job(session, project, JobState.QUEUED, title="Wait")
    dialog = signed_in.get(f"/queue/{train.id}/stop", headers=PARTIAL).text
    assert "data-modal" in dialog
    assert "Keep what it has" in dialog
    assert "<html" not in dialog
    whole = signed_in.get(f"/queue/{wait.id}/stop").text
    assert "It ends at once." in whole
    assert "Let it go on" in whole
    assert "data-modal" not in whole
    assert signed_in.get("/queue/999/stop").status_code == 404
    assert signed_in.post(f"/queue/{train.id}/cancel", data={"mode": "both"}).status_code == 422
    for job, state in ((train, "cancelling"), (wait, "cancelled")):
        answer = signed_in.post(f"/queue/{job.id}/cancel", data={"mode": "keep"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/queue")
        with parts.sessions() as session:
            found = session.get(Job, job.id)
            assert found is not None
            assert found.state == state
    assert signed_in.post(f"/queue/{wait.id}/cancel", data={"mode": "keep"}).status_code == 409


def test_a_failed_job_is_retried(signed_in: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = seeds.project(session)
        version = seeds.version(session, project, state="draft")
        spec = FreezeJob(dataset_version_id=version.id)
        job = seeds.job(session, project, JobState.FAILED, spec=spec)
        version.job_id = job.id
    assert signed_in.post(f"/queue/{job.id}/retry").status_code == 303
    page = signed_in.get("/queue").text
    assert "1 queued" in page
    assert f"/queue/{job.id}/retry" not in page
    assert signed_in.post(f"/queue/{job.id}/retry").status_code == 409


def test_the_page_takes_the_same_queries_however_long(
    signed_in: TestClient, parts: Services, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    counts = []
    for turn in range(2):
        with parts.sessions.begin() as session:
            for number in range(1, 9):
                project = seeds.project(session, f"P{turn}{number}")
                first = seeds.job(session, project, JobState.QUEUED)
                spec = FreezeJob(dataset_version_id=number)
                enqueue(
                    session,
                    JobRequest(
                        JobKind.FREEZE, spec, "version:1", "B", project.id, depends_on=[first.id]
                    ),
                )
                seeds.job(session, project, JobState.RUNNING)
                seeds.run(session, project, 1, state=JobState.FAILED)
        counts.append(count_queries(lambda: signed_in.get("/queue")))
    assert counts[0] == counts[1]
    assert counts[0] <= 14
