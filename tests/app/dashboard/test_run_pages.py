"""The pages of runs: every state of one, the table, cancel, try again, the stream."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import select
from starlette.testclient import TestClient

from app.dashboard import run_pages, run_view
from app.evaluations import service as evaluations
from app.evaluations.models import Evaluation
from app.events.append import add_points, append
from app.events.queries import events_after, last_event_id
from app.jobs import lease
from app.jobs.models import FENCE, Job, JobAttempt, JobSnapshot
from app.projects.models import Project
from app.runs import service as runs
from app.runs.schemas import RunRequest
from app.specs.evaluation import EvaluationReport, MetricSums
from app.specs.jobs import JobKind, JobState, Queue
from app.specs.training import RunSpec
from app.web.deps import Services
from tests.app.dashboard.conftest import Workshop
from tests.support import made_rows

RUNS = "/projects/support-router/runs"
EVIL = "<script>alert(1)</script>"


def measured(workshop: Workshop, parts: Services, number: int, hits: int) -> None:
    """Let a run's evaluation be done: 40 conversations, `hits` of them right."""
    if workshop.state_of(number, "train") != JobState.CANCELLED:
        workshop.succeed(number)
    count = 40
    with parts.sessions.begin() as session:
        run = workshop.run(session, number)
        row = session.scalars(select(Evaluation).where(Evaluation.run_id == run.id)).one()
        sums = tuple(float(at < hits) for at in range(count))
        exact = MetricSums(metric="exact_match", sums=sums, counts=(1.0,) * count, n=count)
        report = EvaluationReport(
            conversations=count,
            clusters=tuple(map(str, range(count))),
            metrics=(exact,),
            seconds=3,
            generated_tokens=400,
        )
        examples = parts.settings.home / "examples.parquet"
        examples.parent.mkdir(parents=True, exist_ok=True)
        examples.write_bytes(b"")
        evaluations.done(session, row.id, report, examples, parts.settings)


def test_a_waiting_run_says_what_it_waits_for(pages: TestClient, workshop: Workshop) -> None:
    workshop.start(group="g1")
    page = pages.get(f"{RUNS}/1").text
    assert "#1 kd" in page
    assert "st-queued" in page
    assert "teacher → student" in page
    assert "forward KL, T 1, α 0.7" in page
    assert "Starts when “Fill the teacher cache for #1 kd” has succeeded." in page
    assert 'hx-sse:connect="/projects/support-router/runs/1/events?after=' in page
    assert "No worker has taken a job of this run yet." in page


def test_a_working_run_shows_progress_figures_and_attempts(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    workshop.start()
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    train = workshop.bring(1, "train", JobState.RUNNING)
    with parts.sessions.begin() as session:
        job = session.get_one(Job, train)
        job.attempt, job.phase = 2, "train"
        job.progress = {"done": 30, "total": 150, "unit": "steps", "eta_seconds": 95.0}
        for n, outcome in ((1, "lost"), (2, None)):
            fence = session.scalar(select(FENCE.next_value()))
            session.add(
                JobAttempt(
                    fence=fence,
                    job_id=train,
                    n=n,
                    worker=f"gpu@box:{n}",
                    host="box",
                    outcome=outcome,
                    resumed_from_step=20 if n > 1 else None,
                )
            )
        session.add(
            JobSnapshot(
                job_id=train,
                fence=1,
                step=20,
                folder="x",
                manifest_sha256="a",
                best=True,
                value=0.25,
            )
        )
        add_points(session, "run:1", job_id=train, fence=1, steps={30: {"train/kd_loss": 0.0786}})
        append(session, "run:1", "log", {"level": "info", "text": EVIL}, job_id=train)
    page = pages.get(f"{RUNS}/1").text
    for part in (
        "Train: about 1 m 35 s left",
        "30 of 150 steps",
        "attempt 2",
        "worker lost",
        "went on from step 20",
        "step 20",
        "0.2500",
        "0.0786",
        'name="mode" value="discard"',
    ):
        assert part in page, part
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_live_part_alone_is_sent_to_htmx(pages: TestClient, workshop: Workshop) -> None:
    workshop.start()
    headers = {"HX-Request": "true", "HX-Request-Type": "partial"}
    part = pages.get(f"{RUNS}/1", headers=headers).text
    assert 'id="run-live"' in part
    assert "<html" not in part
    assert "data-chart" not in part


def test_a_failed_run_says_why_and_offers_the_mend(pages: TestClient, workshop: Workshop) -> None:
    workshop.start()
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    sentence = "Step 3: the loss is nan. Lower the learning rate."
    workshop.bring(1, "train", JobState.FAILED, error="NonFiniteLossError", message=sentence)
    page = pages.get(f"{RUNS}/1").text
    assert sentence in page
    assert "Try again" in page
    assert f"{RUNS}/new?from=1" in page
    assert "hx-sse:connect" not in page
    assert pages.post(f"{RUNS}/1/retry").headers["location"] == f"{RUNS}/1"
    assert workshop.state_of(1, "train") == "queued"
    again = pages.post(f"{RUNS}/1/retry")
    assert again.status_code == 409
    assert "nothing needs to be tried again" in again.text


def test_a_finished_run_shows_its_result(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    workshop.start()
    measured(workshop, parts, 1, 36)
    page = pages.get(f"{RUNS}/1").text
    assert "st-succeeded" in page
    assert "90.0" in page
    assert "n 40" in page
    assert "on 40 held-out conversations" in page
    assert 'data-open="stop"' not in page


@pytest.mark.parametrize("best", [True, False])
def test_a_run_says_of_which_step_its_checkpoint_is(
    pages: TestClient, parts: Services, workshop: Workshop, tmp_path: Path, best: bool
) -> None:
    workshop.start()
    (tmp_path / "model").mkdir()
    with parts.sessions.begin() as session:
        of_step = {"step": 1000, "best": best}
        run = workshop.run(session, 1)
        runs.trained(session, run.id, made_rows.card(), tmp_path / "model", parts.settings, of_step)
    page = pages.get(f"{RUNS}/1").text
    assert "of step 1,000" in page
    assert (", the lowest validation loss." in page) == best


def test_a_run_says_by_what_it_was_kept_and_why_it_ended(
    pages: TestClient, parts: Services, workshop: Workshop, tmp_path: Path
) -> None:
    schedule = {"steps": 500, "select_by": "exact_match", "patience": 3}
    workshop.start(training={"schedule": schedule})
    (tmp_path / "model").mkdir()
    judge = "validation/exact_match"
    origin = {"step": 120, "best": True, "by": judge, "value": 0.91, "of": 64}
    origin |= {"ended": 210, "patience": 3, "judged_by": judge}
    with parts.sessions.begin() as session:
        run = workshop.run(session, 1)
        runs.trained(session, run.id, made_rows.card(), tmp_path / "model", parts.settings, origin)
    kept = "of step 120, the highest validation exact match, 91.0 % of 64 conversations"
    ended = (
        "Training ended after step 210 of 500: the validation exact match did not improve over 3 "
        "validations."
    )
    page = pages.get(f"{RUNS}/1").text
    assert f"{kept}." in page
    assert ended in page
    out = pages.get("/api/v1/projects/support-router/runs/1").json()
    assert (out["kept"], out["ended"]) == (kept, ended)
    for words in ("<dt>Best by</dt><dd>exact match</dd>", "<dt>Patience</dt><dd>3</dd>"):
        assert words in page


def test_snapshots_are_told_by_what_judges_them(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    workshop.start(training={"schedule": {"select_by": "agreement"}})
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    train = workshop.bring(1, "train", JobState.RUNNING)
    judge = "validation/agreement"
    with parts.sessions.begin() as session:
        values = {"folder": "x", "manifest_sha256": "a", "best": True, "value": 0.25}
        session.add(JobSnapshot(job_id=train, fence=1, step=20, **values))
        add_points(session, "run:1", job_id=train, fence=1, steps={20: {judge: 0.25}})
    page = pages.get(f"{RUNS}/1").text
    table = page.partition('aria-label="Snapshots, table"')[2].partition("</table>")[0]
    assert "Token agreement" in table
    assert "25.0" in table
    assert "25.0 %" in page.partition('<dl class="stats">')[2].partition("</dl>")[0]
    assert "Right on validation data" in page
    assert 'id="ended"' not in page


@pytest.mark.parametrize(("mode", "kept"), [("keep", True), ("discard", False)])
def test_stop_asks_the_worker_to_keep_or_discard(
    pages: TestClient, parts: Services, workshop: Workshop, mode: str, kept: bool
) -> None:
    workshop.start()
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    train = workshop.bring(1, "train", JobState.RUNNING)
    answer = pages.post(f"{RUNS}/1/cancel", data={"mode": mode})
    assert answer.headers["location"] == f"{RUNS}/1"
    page = pages.get(f"{RUNS}/1").text
    assert "st-cancelling" in page
    assert 'data-open="stop"' not in page
    with parts.sessions.begin() as session:
        assert session.get_one(Job, train).cancel_mode == mode
        run = workshop.run(session, 1)
        if kept:
            run.checkpoint_id = run.student_id
    workshop.bring(1, "train", JobState.CANCELLED)
    page = pages.get(f"{RUNS}/1").text
    assert ("Evaluate what was kept" in page) == kept
    assert ("Nothing of the training was kept" in page) != kept
    pages.post(f"{RUNS}/1/retry")
    # What was kept is only evaluated; what was discarded is trained again.
    assert workshop.state_of(1, "evaluate") == ("queued" if kept else "blocked")
    assert workshop.state_of(1, "train") == ("cancelled" if kept else "queued")
    if kept:
        measured(workshop, parts, 1, 36)
        workshop.bring(1, "evaluate", JobState.SUCCEEDED)
        page = pages.get(f"{RUNS}/1").text
        assert "its result stands below" in page
        assert "Evaluate what was kept" not in page
        assert "st-cancelled" in page


def test_a_failed_training_goes_on_from_its_snapshot_or_gives_it_up(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    workshop.start()
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    train = workshop.job(1, "train")
    with parts.sessions.begin() as session:
        snapshot = JobSnapshot(
            job_id=train, fence=1, step=1200, folder="x", manifest_sha256="a", value=0.25
        )
        session.add(snapshot)
    workshop.bring(1, "train", JobState.FAILED, error="disk_full", message="The disk is full.")

    def shown() -> Any:
        return pages.get("/api/v1/projects/support-router/runs/1").json()

    page = pages.get(f"{RUNS}/1").text
    assert "Training goes on after step 1,200, from a snapshot that is kept until" in page
    assert 'data-open="discard"' in page
    ended = datetime.fromisoformat(shown()["jobs"][1]["ended_at"])
    until = datetime.fromisoformat(shown()["snapshots_until"])
    assert (shown()["resumes_after"], until - ended) == (1200, timedelta(days=7))
    assert pages.post(f"{RUNS}/1/cancel", data={"mode": "keep"}).status_code == 409
    assert pages.post(f"{RUNS}/1/cancel", data={"mode": "discard"}).status_code == 303
    page = pages.get(f"{RUNS}/1").text
    assert "Training starts from step 0: no snapshot of it is left." in page
    assert 'data-open="discard"' not in page
    assert (shown()["resumes_after"], shown()["snapshots_until"]) == (None, None)
    assert pages.post(f"{RUNS}/1/cancel", data={"mode": "discard"}).status_code == 409


def test_a_training_that_went_on_says_from_which_step(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    workshop.start()
    workshop.bring(1, "precompute", JobState.SUCCEEDED)
    train = workshop.job(1, "train")
    with parts.sessions.begin() as session:
        row = JobSnapshot(job_id=train, fence=1, step=20, folder="x", manifest_sha256="a")
        session.add(row)
        add_points(session, "run:1", job_id=train, fence=1, steps={20: {"train/kd_loss": 0.0786}})
    workshop.bring(1, "train", JobState.FAILED, error="disk_full", message="The disk is full.")
    pages.post(f"{RUNS}/1/retry")
    with parts.sessions.begin() as session:
        held = lease.claim(session, Queue.GPU, worker="w", host="h", lease_seconds=30)
        while held is not None and held.kind != JobKind.TRAIN:
            held = lease.claim(session, Queue.GPU, worker="w", host="h", lease_seconds=30)
        assert held is not None
        lease.running(session, held)
    page = pages.get(f"{RUNS}/1").text
    assert "attempt 1, from 20" in page
    assert "went on from step 20" in page
    assert "0.0786" in page, "the curve goes on"


def test_a_stop_that_comes_too_late_or_is_not_read_changes_nothing(
    pages: TestClient, workshop: Workshop
) -> None:
    workshop.start()
    assert pages.post(f"{RUNS}/1/cancel", data={"mode": "burn"}).status_code == 422
    assert workshop.state_of(1, "train") == "blocked"
    workshop.succeed(1)
    late = pages.post(f"{RUNS}/1/cancel", data={"mode": "keep"})
    assert late.status_code == 409
    assert "has already ended: succeeded" in late.text
    assert pages.get(f"{RUNS}/9").status_code == 404


def test_the_table_shows_filters_and_sorts_runs(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    assert "Set up the first run" in pages.get(RUNS).text
    for name, hits in (("low", 20), ("high", 39)):
        number = workshop.start(name, group="g1")
        measured(workshop, parts, number, hits)
    workshop.start("waiting", group="g2")
    page = pages.get(RUNS).text
    order = [page.index(f"#{n} ") for n in (3, 2, 1)]
    assert order == sorted(order)
    assert "97.5" in page
    by_value = pages.get(RUNS, params={"sort": "value", "order": "desc"}).text
    places = [by_value.index(name) for name in ("#2 high", "#1 low", "#3 waiting")]
    assert places == sorted(places)
    found = pages.get(RUNS, params={"state": "queued"}).text
    assert "#3 waiting" in found
    assert "#1 low" not in found
    assert "#2 high" in pages.get(RUNS, params={"search": "#2"}).text
    none = pages.get(RUNS, params={"search": "nothing", "group": "g1"}).text
    assert "Drop search “nothing”" in none
    part = pages.get(RUNS, headers={"HX-Request": "true", "HX-Request-Type": "partial"}).text
    assert 'id="rows"' in part
    assert "<html" not in part
    assert "Any state" not in part


def test_the_table_pages_by_key_and_asks_as_often_for_many_rows_as_for_few(
    pages: TestClient, workshop: Workshop, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    workshop.start("first")
    few = count_queries(lambda: pages.get(RUNS))
    for n in range(52):
        workshop.start(f"run-{n}")
    many = count_queries(lambda: pages.get(RUNS))
    assert many == few
    page = pages.get(RUNS).text
    assert "#53 run-51" in page
    assert "#3 run-1<" not in page
    link = page.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    rest = pages.get(link).text
    assert "#3 run-1<" in rest
    assert "#1 first" in rest
    assert "#4 run-2<" not in rest


def test_a_clone_shows_what_differs(pages: TestClient, workshop: Workshop) -> None:
    workshop.start("a")
    workshop.start("b", parent=1, training={"schedule": {"learning_rate": 0.001}})
    page = pages.get(f"{RUNS}/2").text
    assert "Changes to #1" in page
    assert "<del>0.0005</del>" in page
    assert "<ins>0.001</ins>" in page
    assert "clone of" in page
    assert "dataset: traffic@1" in page


def test_the_yaml_of_a_run_starts_an_equal_one(
    pages: TestClient, parts: Services, workshop: Workshop
) -> None:
    asked = {"objective": {"temperature": 2}, "schedule": {"betas": [0.8, 0.9]}}
    workshop.start("a", group="g1", training=asked)
    plain = {"objective": {"kind": "ce", "alpha": 0}}
    workshop.start("tuned", role="fine_tune", student="teacher", training=plain)
    with parts.sessions.begin() as session:
        for number in (1, 2):
            run = workshop.run(session, number)
            spec = RunSpec.model_validate(run.spec)
            text = run_view.as_yaml(spec, run_view.named_of(session, run))
            project = session.get_one(Project, workshop.project_id)
            again = runs.resolve(session, project, RunRequest.model_validate(yaml.safe_load(text)))
            assert again == spec
    assert "Copy YAML" in pages.get(f"{RUNS}/1").text


def test_the_table_polls_while_a_run_is_open(pages: TestClient, workshop: Workshop) -> None:
    workshop.start()
    page = pages.get(RUNS, params={"sort": "name", "order": "asc"}).text
    assert (
        'hx-get="/projects/support-router/runs?sort=name&amp;order=asc" hx-trigger="every 5s"'
        in page
    )
    workshop.succeed(1)
    assert "every 5s" not in pages.get(RUNS).text


def test_the_stream_replays_from_the_id_and_holds_the_shared_cache(
    parts: Services, pages: TestClient, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.start("a")
    workshop.start("b")
    cache, train = workshop.job(2, "precompute"), workshop.job(2, "train")
    with parts.sessions.begin() as session:
        before = last_event_id(session, "run:2", "cache:1")
        append(session, "cache:1", "progress", {"done": 1, "total": 2}, job_id=cache)
        append(session, "run:1", "log", {"text": "of another run"}, job_id=None)
        append(session, "run:2", "log", {"text": "own"}, job_id=train)
    asked: list[tuple[tuple[str, ...], int]] = []

    def stream(_request: object, *streams: str, after: int, **_rest: object) -> str:
        asked.append((streams, after))
        return "ok"

    monkeypatch.setattr(run_pages, "event_stream", stream)
    assert pages.get(f"{RUNS}/2/events", params={"after": before}).status_code == 200
    assert asked == [(("run:2", "cache:1"), before)]
    with parts.sessions.begin() as session:
        found = [e.payload for e in events_after(session, asked[0][0], before)]
        again = events_after(session, asked[0][0], last_event_id(session, *asked[0][0]))
    assert found == [{"done": 1, "total": 2}, {"text": "own"}]
    assert again == []


def test_the_log_is_text(pages: TestClient, parts: Services, workshop: Workshop) -> None:
    workshop.start()
    job = workshop.job(1, "train")
    with parts.sessions.begin() as session:
        append(session, "run:1", "log", {"level": "info", "text": "step 1"}, job_id=job)
    answer = pages.get(f"{RUNS}/1/log")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.endswith("info step 1\n")


def test_names_of_a_run_are_escaped(pages: TestClient, workshop: Workshop) -> None:
    workshop.start(EVIL, group=EVIL)
    for page in (pages.get(f"{RUNS}/1").text, pages.get(RUNS).text):
        assert EVIL not in page


def test_a_draft_version_cannot_start(pages: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = made_rows.project(session, "Second")
        made_rows.teacher_and_student(session, project)
        made_rows.version(session, project, parts.settings, state="draft")
    page = pages.get("/projects/second/runs/new").text
    assert "The dataset version is draft: freeze it before a run uses it." in page
    assert "disabled" in page
