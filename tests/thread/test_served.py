"""Teachers behind a server, through real tasks: rows and a distilled run; answers and a run on them."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import CheckpointAdd
from app.datasets import generations
from app.datasets import service as datasets
from app.datasets.models import DatasetVersion, Upload
from app.datasets.schemas import GenerationRequest, ImportRequest
from app.db.session import transaction
from app.errors import Conflict
from app.evaluations import service as evaluations
from app.evaluations.comparing import compare_chosen
from app.evaluations.models import Evaluation, EvaluationMetric
from app.evaluations.schemas import Choice
from app.events.models import RunEvent
from app.events.queries import series
from app.jobs.models import Job
from app.jobs.service import request_cancel
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.runs.models import RunJob
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard, EndpointSource, FolderSource
from app.specs.evaluation import EvaluationSpec
from app.specs.jobs import JobKind, JobState, Queue
from app.specs.teacher import CaptureProfile
from app.specs.training import Objective, RenderSpec, RunSpec, Schedule, TrainingSpec
from app.teacher_cache.models import CacheSpaceRow
from tests.support.served import MODEL, Served, serving
from tests.support.traffic import write_log
from tests.support.workers import carry_out_here, working
from tests.workers.distill.served.conftest import sharp
from tests.workers.distill.tiny import llama, tokenizer
from workers.distill.checkpoints import save_checkpoint

Factory = sessionmaker[Session]
OWNER = "tester"
KEY = "sk-canary-4711"
PROFILE = CaptureProfile(k_max=20, temperatures=(1.0,))


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(Served(sharp(), tokenizer(), key=KEY)) as found:
        yield found


@pytest.fixture
def allowing(settings: Settings, served: Served) -> Settings:
    return settings.model_copy(update={"endpoint_hosts": served.allowed})


def upload(session: Session, project: Project, path: Path, settings: Settings) -> int:
    row = datasets.start_upload(
        session, project, filename=path.name, size=path.stat().st_size, settings=settings
    )
    shutil.copyfile(path, datasets.upload_path(settings, row.key))
    digest = datasets.hash_upload(settings, row.key)
    datasets.finish_upload(session, row.id, sha256=digest, owner=OWNER)
    return row.id


def training(alpha: float) -> TrainingSpec:
    return TrainingSpec(
        objective=Objective.model_validate(
            {"kind": "forward_kl" if alpha else "ce", "alpha": alpha}
        ),
        schedule=Schedule(steps=4, batch_size=4, snapshot_every=4, validate_every=4),
        render=RenderSpec(max_tokens=200),
    )


def run_of(name: str, alpha: float, version: int, student: int, teacher: int) -> RunSpec:
    return RunSpec(
        name=name,
        teacher_id=teacher,
        student_id=student,
        dataset_version_id=version,
        training=training(alpha),
        capture=PROFILE,
        evaluation=EvaluationSpec(max_new_tokens=4, max_conversations=6),
    )


def start(factory: Factory, settings: Settings, tmp_path: Path, served: Served) -> dict[str, int]:
    """Register server and weights of one teacher, and a student; import and freeze a log."""
    for name, model in (("here", served.model), ("student", llama(layers=1, seed=3))):
        save_checkpoint(model, tokenizer(), tmp_path / name)
    write_log(tmp_path / "traffic.jsonl", 40)
    folder = FolderSource(path=str(tmp_path / "here"))
    endpoint = EndpointSource(base_url=served.url, model=MODEL, tokenizer=folder, at_once=3)
    sources = {
        "served": endpoint,
        "text": endpoint.model_copy(update={"tokenizer": None}),
        "here": folder,
        "student": FolderSource(path=str(tmp_path / "student")),
    }
    with transaction(factory) as session:
        project = projects.create(session, ProjectCreate(name="Tickets"), owner_id=None)
        found = {"upload": upload(session, project, tmp_path / "traffic.jsonl", settings)}
        for name, source in sources.items():
            key = KEY if isinstance(source, EndpointSource) else None
            add = CheckpointAdd(name=name, source=source, api_key=key)
            row = checkpoints.register(session, project, add, settings=settings, owner=OWNER)
            found[name] = row.id
    carry_out_here(factory, settings)
    with transaction(factory) as session:
        project = session.scalars(select(Project)).one()
        found["version"] = frozen_import(factory, session, project, found["upload"])
    freeze(factory, settings, found["version"])
    return found


def frozen_import(_: Factory, session: Session, project: Project, upload_id: int) -> int:
    wanted = ImportRequest(dataset=f"d{upload_id}", upload_ids=[upload_id])
    return datasets.start_import(session, project, wanted, owner=OWNER).id


def freeze(factory: Factory, settings: Settings, version_id: int) -> None:
    carry_out_here(factory, settings)
    with transaction(factory) as session:
        project = session.scalars(select(Project)).one()
        version = datasets.get_version(session, project.id, version_id)
        datasets.start_freeze(session, version, owner=OWNER)
    carry_out_here(factory, settings)


def started(factory: Factory, spec: RunSpec) -> tuple[int, int]:
    """Start a run; return its id and its training's."""
    with transaction(factory) as session:
        project = session.scalars(select(Project)).one()
        run = evaluations.start_run(session, project, spec, owner=OWNER)
        job = session.scalars(
            select(RunJob.job_id).where(RunJob.run_id == run.id, RunJob.role == "train")
        ).one()
        return run.id, job


def test_a_run_learns_from_a_server_what_it_learns_from_the_same_weights(
    factory: Factory, allowing: Settings, tmp_path: Path, served: Served
) -> None:
    ids = start(factory, allowing, tmp_path, served)
    with transaction(factory) as session:
        card = CheckpointCard.model_validate(session.get_one(Checkpoint, ids["served"]).card)
        here = CheckpointCard.model_validate(session.get_one(Checkpoint, ids["here"]).card)
    assert card.server is not None
    assert (card.server.top, card.bytes, card.dtype) == (20, None, None)
    sizes = ("parameters_total", "parameters_compute", "depth", "width", "heads", "vocabulary")
    assert {s: getattr(card, s) for s in sizes} == {s: getattr(here, s) for s in sizes}
    assert card.tokenizer_fingerprint == here.tokenizer_fingerprint
    assert card.context_length == served.context

    served.faults.busy = 3
    made = {
        name: started(factory, run_of(name, 0.7, ids["version"], ids["student"], ids[name]))
        for name in ("served", "here")
    }
    carry_out_here(factory, allowing)
    with transaction(factory) as session:
        curves = {n: series(session, [job])["train/kd_loss"] for n, (_, job) in made.items()}
        spaces = session.scalars(select(CacheSpaceRow)).all()
        queues = {
            job.spec["teacher_id"]: job.queue
            for job in session.scalars(select(Job).where(Job.kind == JobKind.PRECOMPUTE))
        }
        assert queues == {ids["served"]: Queue.CPU, ids["here"]: Queue.GPU}, (
            "a server needs no card"
        )
        rows = session.scalars(select(Evaluation)).all()
        metrics = {
            row.id: set(
                session.scalars(
                    select(EvaluationMetric.metric).where(EvaluationMetric.evaluation_id == row.id)
                )
            )
            for row in rows
        }
        comparison = compare_chosen(session, session.scalars(select(Project)).one(), Choice())
        shown = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
        said = [str(e.payload) for e in session.scalars(select(RunEvent))]
        dump = repr(
            [(j.spec, j.result, j.error_message, j.title) for j in session.scalars(select(Job))]
        )
    assert len(curves["served"]) == 4
    for (step, one), (other_step, other) in zip(curves["served"], curves["here"], strict=True):
        assert step == other_step
        assert one == pytest.approx(other, rel=2e-3), "8 bits a log-probability are kept of both"
        assert one > 0.01
    reports = {space.spec["dtype"]: space.report for space in spaces}
    assert set(reports) == {"served", "float32"}
    assert all(report and report["faithfulness"]["passed"] for report in reports.values())
    assert reports["served"]["mean_entropy"] <= reports["float32"]["mean_entropy"] + 1e-3
    # The served teacher has no row; runs against it have all but what needs its distribution.
    of_served = [row for row in rows if row.teacher_id == ids["served"]]
    assert {row.role for row in of_served} == {"distilled", "undistilled"}
    for row in of_served:
        assert {"kl", "agreement"}.isdisjoint(metrics[row.id])
        assert {"exact_match", "ece"} <= metrics[row.id]
    assert {row["role"] for row in shown["rows"]} <= {"teacher", "distilled", "undistilled"}
    assert any("KL and agreement are left out" in text for text in said)
    assert KEY not in dump + "".join(said)
    assert served.most_at_once <= 3


def test_answers_of_a_text_only_server_are_trained_on(
    factory: Factory, allowing: Settings, tmp_path: Path, served: Served
) -> None:
    ids = start(factory, allowing, tmp_path, served)
    prompts = tmp_path / "prompts.jsonl"
    asked = [
        {"messages": [{"role": "user", "content": f"Ticket {n}: lost card"}]} for n in range(24)
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in asked))
    served.faults.bad_prompt = "Ticket 7:"
    with transaction(factory) as session:
        project = session.scalars(select(Project)).one()
        with pytest.raises(Conflict, match="text-only endpoint"):
            evaluations.start_run(
                session,
                project,
                run_of("kd", 0.7, ids["version"], ids["student"], ids["text"]),
                owner=OWNER,
            )
        request = GenerationRequest(
            checkpoint="text", prompts_upload_id=upload(session, project, prompts, allowing)
        )
        answers = generations.start(session, project, request, owner=OWNER)
        assert session.get_one(Job, answers.job_id).queue == Queue.CPU
    carry_out_here(factory, allowing)
    with transaction(factory) as session:
        job = session.get_one(Job, answers.job_id)
        assert job.result is not None
        assert (job.result["answers"], job.result["failed"]) == (23, {"EndpointAnswerError": 1})
        project = session.scalars(select(Project)).one()
        path = datasets.upload_path(allowing, session.get_one(Upload, answers.id).key)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["request"] for line in lines] == asked
        assert lines[7]["response"]["error"]["type"] == "EndpointAnswerError"
        version_id = frozen_import(factory, session, project, answers.id)
    freeze(factory, allowing, version_id)
    with transaction(factory) as session:
        funnel = session.get_one(DatasetVersion, version_id).funnel
        assert funnel is not None
        assert (funnel["records"], funnel["calls"], funnel["skipped"]) == (
            24,
            23,
            {"error_response": 1},
        )
    _, job_id = started(factory, run_of("seq", 0.0, version_id, ids["student"], ids["text"]))
    carry_out_here(factory, allowing)
    with transaction(factory) as session:
        losses = series(session, [job_id])["train/ce_loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4]


def job_of(session: Session, checkpoint_id: int) -> Job:
    return session.get_one(Job, session.get_one(Checkpoint, checkpoint_id).job_id)


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("refused", {}, "EndpointRefusedError", "is not asked"),
        ("key", {}, "EndpointKeyError", "wants an API key"),
        ("model", {"model": "gpt"}, "EndpointModelError", f"It serves {MODEL}"),
    ],
)
def test_a_server_that_cannot_be_used_is_named(
    factory: Factory,
    settings: Settings,
    allowing: Settings,
    served: Served,
    name: str,
    change: dict[str, Any],
    error: str,
    words: str,
) -> None:
    source = EndpointSource(base_url=served.url, model=MODEL).model_copy(update=change)
    with transaction(factory) as session:
        project = projects.create(session, ProjectCreate(name="Tickets"), owner_id=None)
        key = KEY if name == "model" else None
        add = CheckpointAdd(name="t", source=source, api_key=key)
        row = checkpoints.register(session, project, add, settings=allowing, owner=OWNER)
    # Allowed when it was saved: the worker judges again, by its own settings.
    with pytest.raises(AssertionError):
        carry_out_here(factory, settings if name == "refused" else allowing)
    with transaction(factory) as session:
        job, found = job_of(session, row.id), session.get_one(Checkpoint, row.id)
        assert job.error == error
        assert words in str(job.error_message)
        assert (found.state, found.error) == ("failed", job.error_message)
        # The key is kept for the next try, as the mend asks for another or none.
        assert checkpoints.has_key(allowing, row.id) == (name == "model")
        checkpoints.retry(session, found, settings=allowing, owner=OWNER, api_key=KEY)
        assert checkpoints.has_key(allowing, row.id)


@pytest.mark.slow
def test_a_cancelled_capture_stops_within_seconds(
    factory: Factory, allowing: Settings, tmp_path: Path, served: Served
) -> None:
    """With a real supervisor and child: the key is read from its file there, the server hangs."""
    ids = start(factory, allowing, tmp_path, served)
    asked = len(served.asked)
    served.faults.hang = 120.0
    started(factory, run_of("kd", 0.7, ids["version"], ids["student"], ids["served"]))
    with working(factory, allowing):
        until(lambda: len(served.asked) > asked)
        assert served.keys[-1] == f"Bearer {KEY}"
        with transaction(factory) as session:
            wanted = select(Job).where(Job.kind == JobKind.PRECOMPUTE)
            job = session.scalars(wanted).one()
            request_cancel(session, job.id, "keep")
        began = time.monotonic()
        until(lambda: JobState(state_of(factory, job.id)).terminal)
        took = time.monotonic() - began
    assert took < allowing.keep_seconds, "it went by itself: nothing had to kill it"
    assert state_of(factory, job.id) == JobState.CANCELLED


def until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within a minute")


def state_of(factory: Factory, job_id: int) -> str:
    with transaction(factory) as session:
        return session.get_one(Job, job_id).state
