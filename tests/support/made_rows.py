"""Rows that runs need, without weights: ready checkpoints, a frozen version with its file."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from app.checkpoints.models import Checkpoint
from app.clock import now
from app.datasets.models import Dataset, DatasetVersion
from app.jobs.models import Job
from app.jobs.service import end
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import ProjectCreate
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.conversation import Conversation, ImportFunnel, Message
from app.specs.dataset_file import to_row
from app.specs.jobs import JobKind, JobState, PrecomputeJob
from app.specs.teacher import CacheReport
from app.storage.blobs import LocalBlobs
from app.teacher_cache import service as cache

SPLITS = {"train": 60, "validation": 10, "test": 30}


def card(**changes: Any) -> CheckpointCard:
    """Return the card of a small llama; compute per token is 1,000,000 unless changed."""
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "parameters_total": 1_200_000,
        "parameters_embedding": 200_000,
        "parameters_compute": 1_000_000,
        "depth": 4,
        "width": 64,
        "ffn_width": 192,
        "heads": 4,
        "kv_heads": 2,
        "vocabulary": 512,
        "tokenizer_entries": 512,
        "tokenizer_fingerprint": "a" * 64,
        "template_fingerprint": "b" * 64,
        "eos_token": "<|im_end|>",
        "context_length": 2048,
        "dtype": "float32",
        "bytes": 4_800_000,
        "weights_fingerprint": "c" * 64,
    }
    return CheckpointCard.model_validate({**values, **changes})


def project(session: Session, name: str = "Support router") -> Project:
    return projects.create(session, ProjectCreate(name=name), owner_id=None)


def checkpoint(session: Session, owner: Project, name: str, **changes: Any) -> Checkpoint:
    made = card(**changes)
    row = Checkpoint(
        project_id=owner.id,
        name=name,
        state="ready",
        origin={"kind": "folder", "path": f"/models/{name}"},
        blob=f"checkpoints/{name}",
        card=made.model_dump(mode="json"),
        weights_fingerprint=made.weights_fingerprint,
        tokenizer_fingerprint=made.tokenizer_fingerprint,
    )
    session.add(row)
    session.flush()
    return row


def teacher_and_student(session: Session, owner: Project) -> tuple[Checkpoint, Checkpoint]:
    """Return a teacher and a student of an eighth of its compute, and make them the project's."""
    teacher = checkpoint(session, owner, "teacher", parameters_compute=8_000_000)
    student = checkpoint(session, owner, "student", weights_fingerprint="d" * 64)
    owner.teacher_id, owner.student_id = teacher.id, student.id
    session.flush()
    return teacher, student


def conversations(count: int = 20, content: str = "Where is my parcel") -> list[Conversation]:
    return [
        Conversation(
            messages=(
                Message(role="user", content=f"{content} {n}"),
                Message(role="assistant", content='{"queue": "lost"}', is_target=True),
            )
        )
        for n in range(count)
    ]


def version(
    session: Session,
    owner: Project,
    settings: Settings,
    *,
    name: str = "traffic",
    number: int = 1,
    state: str = "frozen",
    splits: dict[str, int] | None = None,
    references: int = 20,
) -> DatasetVersion:
    """Return a version whose funnel has the given splits and whose file has a few conversations."""
    splits = SPLITS if splits is None else splits
    total = sum(splits.values())
    funnel = ImportFunnel(
        format="openai_chat",
        records=total,
        calls=total,
        duplicates=0,
        folded=0,
        conversations=total,
        targets=total,
        references=references,
        splits=splits,
    )
    dataset = session.query(Dataset).filter_by(project_id=owner.id, name=name).one_or_none()
    if dataset is None:
        dataset = Dataset(project_id=owner.id, name=name)
    blob = f"datasets/{owner.id}/{name}-{number}.parquet"
    path = LocalBlobs(settings.blobs).path(blob)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([to_row(c) for c in conversations()]), path)
    row = DatasetVersion(
        dataset=dataset,
        number=number,
        state=state,
        import_spec={},
        funnel=funnel.model_dump(mode="json"),
        conversations_blob=blob,
        content_sha256=f"{owner.id}-{name}-{number}".ljust(64, "0") if state == "frozen" else None,
        notes="",
    )
    session.add(row)
    session.flush()
    return row


def bring_to(session: Session, job_id: int, state: JobState, **fields: Any) -> Job:
    """Move a job to a state by the steps a worker takes; `fields` go to `end`."""
    job = session.get_one(Job, job_id)
    path = [JobState.QUEUED, JobState.STARTING, JobState.RUNNING]
    goal = JobState.RUNNING if state in (JobState.SUCCEEDED, JobState.FAILED) else state
    if job.state in path and goal in path:
        for step in path[path.index(JobState(job.state)) + 1 : path.index(goal) + 1]:
            job.state = step
            job.attempt = max(job.attempt, 1)
            job.started_at = job.started_at or now()
            session.flush()
    if state == JobState.SUCCEEDED and job.kind == JobKind.PRECOMPUTE:
        _captured(session, PrecomputeJob.model_validate(job.spec))
    if state.terminal:
        end(session, job, state, **fields)
    return job


def _captured(session: Session, job: PrecomputeJob) -> None:
    """Record that the cache holds all of what a job was to capture."""
    teacher = session.get_one(Checkpoint, job.teacher_id)
    space = cache.space_of(CheckpointCard.model_validate(teacher.card), job.profile)
    cache.open_space(session, space, teacher_id=teacher.id)
    count = SPLITS["train"] + SPLITS["validation"]
    report = CacheReport(
        entries=count,
        rows=29 * count,
        missing_entries=0,
        missing_rows=0,
        new_entries=count,
        new_rows=29 * count,
        bytes=1,
        seconds=1.0,
    )
    cache.captured(session, space.address, job, report)
