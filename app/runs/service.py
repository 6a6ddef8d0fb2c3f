"""Start runs: a frozen spec and the jobs that carry it out; take what training made."""

from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.datasets.models import DatasetVersion
from app.errors import Conflict, NotFound
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue
from app.projects.models import Project
from app.runs.models import Run, RunJob
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.fingerprint import fingerprint
from app.specs.jobs import JobKind, PrecomputeJob, TrainJob
from app.specs.training import RunSpec
from app.storage.blobs import LocalBlobs


def stream_of(run_id: int) -> str:
    return f"run:{run_id}"


def start(
    session: Session, project: Project, spec: RunSpec, *, owner: str, owner_id: int | None = None
) -> tuple[Run, Job]:
    """Freeze the spec as the project's next run and ask for its jobs; return run and training.

    Raises Conflict when the spec cannot work: a version that is not frozen, checkpoints that are
    not ready, tokenizers that differ.
    """
    check(session, spec)
    number = session.scalar(
        update(Project)
        .where(Project.id == project.id)
        .values(last_run_number=Project.last_run_number + 1)
        .returning(Project.last_run_number)
    )
    run = Run(
        project_id=project.id,
        number=number,
        name=spec.name,
        role=spec.effective_role,
        group=spec.group,
        spec=spec.model_dump(mode="json"),
        spec_hash=fingerprint(spec),
        owner_id=owner_id,
        teacher_id=spec.teacher_id,
        student_id=spec.student_id,
        dataset_version_id=spec.dataset_version_id,
    )
    session.add(run)
    session.flush()
    needed: list[int] = []
    if spec.training.objective.needs_teacher:
        needed.append(_ask_for_cache(session, run, spec, owner).id)
    training = enqueue(
        session,
        JobRequest(
            kind=JobKind.TRAIN,
            spec=TrainJob(run_id=run.id, run=spec),
            stream=stream_of(run.id),
            title=f"Train #{run.number} {run.name}",
            project_id=project.id,
            owner=owner,
            depends_on=needed,
        ),
    )
    link(session, run, training, "train")
    return run, training


def _ask_for_cache(session: Session, run: Run, spec: RunSpec, owner: str) -> Job:
    if spec.teacher_id is None:
        raise Conflict("An objective with a teacher term needs a teacher: choose one.")
    precompute = PrecomputeJob(
        teacher_id=spec.teacher_id,
        student_id=spec.student_id,
        dataset_version_id=spec.dataset_version_id,
        render=spec.training.render,
        profile=spec.capture,
    )
    job = enqueue(
        session,
        JobRequest(
            kind=JobKind.PRECOMPUTE,
            spec=precompute,
            stream=stream_of(run.id),
            title=f"Fill the teacher cache for #{run.number} {run.name}",
            project_id=run.project_id,
            owner=owner,
        ),
    )
    link(session, run, job, "precompute")
    return job


def link(session: Session, run: Run, job: Job, role: str) -> None:
    session.add(RunJob(run_id=run.id, job_id=job.id, role=role))
    session.flush()


def check(session: Session, spec: RunSpec) -> None:
    """Raise Conflict with the reason and the mend when the spec cannot work."""
    version = session.get(DatasetVersion, spec.dataset_version_id)
    if version is None:
        raise NotFound("There is no such dataset version.")
    if version.state != "frozen":
        raise Conflict(f"The dataset version is {version.state}: freeze it before a run uses it.")
    student = checkpoints.require_ready(session, spec.student_id)
    if spec.teacher_id is None:
        return
    teacher = checkpoints.require_ready(session, spec.teacher_id)
    differ = teacher.tokenizer_fingerprint != student.tokenizer_fingerprint
    if spec.training.objective.needs_teacher and differ:
        raise Conflict(
            f"“{teacher.name}” and “{student.name}” have different tokenizers, so logit "
            "distillation is off: set alpha to 0 to train on the teacher's answers."
        )


def trained(
    session: Session, run_id: int, card: CheckpointCard, folder: Path, settings: Settings
) -> Checkpoint:
    """Make the trained weights a checkpoint of the project, named after the run."""
    run = session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if run is None:
        raise NotFound("The run was removed while it trained.")
    blob = f"checkpoints/run-{run.id}-{card.weights_fingerprint[:32]}"
    LocalBlobs(settings.blobs).put_folder(folder, blob)
    made = Checkpoint(
        project_id=run.project_id,
        name=f"#{run.number} {run.name}",
        state="registering",
        origin={"kind": "run", "run_id": run.id},
    )
    session.add(made)
    session.flush()
    checkpoints.ready(session, made.id, card, blob)
    run.checkpoint_id = made.id
    session.flush()
    return made
