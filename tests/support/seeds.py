"""Rows for tests of pages: checkpoints with cards, jobs in any state, datasets, runs, evaluations."""

from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.datasets.models import Dataset, DatasetVersion
from app.evaluations.models import Evaluation, EvaluationMetric
from app.jobs import lease
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.runs.models import Run, RunJob
from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import ImportFunnel
from app.specs.events import ErrorEvent
from app.specs.jobs import FreezeJob, JobKind, JobState, Queue

EVIL = '<script>alert(1)</script><b hx-get="/x">"'
CARD = CheckpointCard(
    architecture="LlamaForCausalLM",
    parameters_total=134_515_008,
    parameters_embedding=28_311_552,
    parameters_compute=106_203_456,
    depth=30,
    width=576,
    ffn_width=1536,
    heads=9,
    kv_heads=3,
    vocabulary=49_152,
    tokenizer_entries=49_152,
    tokenizer_fingerprint="a1b2c3d4e5f60718",
    template_fingerprint="41aa0099ffee",
    eos_token="<|im_end|>",
    context_length=8192,
    dtype="bfloat16",
    bytes=269_060_552,
    weights_fingerprint="f00d" * 16,
    licence="apache-2.0",
)
"""SmolLM2-135M's figures."""


def project(session: Session, name: str = "Routing", owner_id: int | None = None) -> Project:
    return projects.create(session, ProjectCreate(name=name), owner_id=owner_id)


def job(
    session: Session,
    of: Project,
    state: JobState,
    *,
    kind: JobKind = JobKind.FREEZE,
    stream: str = "version:1",
    title: str = "Freeze traffic v1",
    message: str = "It broke.",
    spec: Any = None,
) -> Job:
    """Make a job and bring it into a state by the ways a worker has."""
    request = JobRequest(kind, spec or FreezeJob(dataset_version_id=1), stream, title, of.id, "ada")
    made = enqueue(session, request)
    if state == JobState.QUEUED:
        return made
    made.priority = -1  # the next claim takes this one
    session.flush()
    held = lease.claim(
        session, Queue(made.queue), worker=f"{made.queue}-1", host="box", lease_seconds=600
    )
    assert held is not None
    assert held.job_id == made.id
    lease.seen(session, f"{made.queue}-1", Queue(made.queue), host="box", job_id=made.id)
    if state != JobState.STARTING:
        lease.running(session, held)
    if state == JobState.SUCCEEDED:
        lease.succeed(session, held, {})
    elif state == JobState.FAILED:
        lease.fail(session, held, ErrorEvent(error="broken", message=message))
    session.refresh(made)
    return made


def checkpoint(
    session: Session,
    of: Project,
    name: str = "big",
    *,
    card: CheckpointCard | None = CARD,
    origin: dict[str, Any] | None = None,
    made_by: Job | None = None,
    error: str | None = None,
) -> Checkpoint:
    """Make a checkpoint: ready with a card, failed with an error, else being registered."""
    row = Checkpoint(
        project_id=of.id,
        name=name,
        state="failed" if error else "ready" if card else "registering",
        origin=origin or {"kind": "folder", "path": "/models/big"},
        blob="checkpoints/x" if card else None,
        card=card.model_dump(mode="json") if card else None,
        weights_fingerprint=card.weights_fingerprint if card else None,
        tokenizer_fingerprint=card.tokenizer_fingerprint if card else None,
        job_id=made_by.id if made_by else None,
        error=error,
    )
    session.add(row)
    session.flush()
    return row


def version(
    session: Session,
    of: Project,
    name: str = "traffic",
    *,
    state: str = "frozen",
    conversations: int = 600,
) -> DatasetVersion:
    funnel = ImportFunnel(
        format="openai_chat",
        records=conversations,
        calls=conversations,
        duplicates=0,
        skipped={},
        quarantined={},
        folded=0,
        conversations=conversations,
        targets=conversations,
    ).model_dump(mode="json")
    row = DatasetVersion(
        dataset=Dataset(project_id=of.id, name=name),
        number=1,
        state=state,
        import_spec={"upload_ids": []},
        funnel=funnel if state in ("draft", "frozen") else None,
        content_sha256="c" * 64 if state == "frozen" else None,
        notes="",
    )
    session.add(row)
    session.flush()
    return row


def run(
    session: Session,
    of: Project,
    number: int,
    *,
    state: JobState = JobState.SUCCEEDED,
    name: str = "kd",
    role: str = "distilled",
    group: str | None = None,
    **ids: int | None,
) -> Run:
    """Make a run whose one job, the training, is in a state."""
    row = Run(
        project_id=of.id,
        number=number,
        name=name,
        role=role,
        group=group,
        spec={},
        spec_hash="",
        **ids,
    )
    session.add(row)
    session.flush()
    made = job(
        session,
        of,
        state,
        kind=JobKind.TRAIN,
        stream=f"run:{row.id}",
        title=f"Train #{number} {name}",
    )
    session.add(RunJob(run_id=row.id, job_id=made.id, role="train"))
    of.last_run_number = number
    session.flush()
    return row


def evaluation(  # noqa: PLR0913 - a row with its one metric, each column a keyword
    session: Session,
    of: Project,
    version_id: int,
    *,
    role: str,
    name: str,
    right: int,
    n: int = 200,
    run_id: int | None = None,
    metric: str = "exact_match",
) -> Evaluation:
    """Make a finished evaluation in which the first `right` of n conversations are right."""
    row = Evaluation(
        project_id=of.id,
        role=role,
        name=name,
        run_id=run_id,
        dataset_version_id=version_id,
        spec={},
        spec_hash="",
        set_key="set",
        state="done",
        conversations=n,
        clusters_sha256="same",
        seconds=1.0,
    )
    session.add(row)
    session.flush()
    sums = np.zeros(n)
    sums[:right] = 1
    session.add(
        EvaluationMetric(
            evaluation_id=row.id,
            metric=metric,
            slice="all",
            value=right / n,
            n=n,
            excluded=0,
            paired=True,
            sums=sums.tobytes(),
            counts=np.ones(n).tobytes(),
        )
    )
    session.flush()
    return row


def failure(message: str) -> ErrorEvent:
    return ErrorEvent(error="broken", message=message)
