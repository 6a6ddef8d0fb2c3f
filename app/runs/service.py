"""Start runs: a frozen spec and the jobs that carry it out; take what training made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.checkpoints import queries as checkpoint_queries
from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.datasets import queries as dataset_queries
from app.datasets.models import DatasetVersion
from app.errors import Conflict, InvalidInput, NotFound
from app.jobs import service as jobs_service
from app.jobs.models import Job
from app.jobs.service import JobRequest, enqueue, request_cancel
from app.jobs.snapshots import discard
from app.projects.models import Project
from app.runs import estimates, queries
from app.runs.advice import look
from app.runs.coverage import rows_were_lost
from app.runs.filling import ask_for_cache, cancel_parts
from app.runs.models import Run, RunJob
from app.runs.queries import RunView
from app.runs.schemas import EstimateOut, RunRequest
from app.runs.subject import Subject
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard
from app.specs.fingerprint import fingerprint
from app.specs.jobs import CancelMode, JobKind, JobState, TrainJob
from app.specs.training import RunSpec


def stream_of(run_id: int) -> str:
    return f"run:{run_id}"


def start(
    session: Session,
    project: Project,
    spec: RunSpec,
    *,
    owner: str,
    owner_id: int | None = None,
    parent_id: int | None = None,
    key: str | None = None,
) -> tuple[Run, Job]:
    """Freeze the spec as the project's next run and ask for its jobs; return run and training.

    key: names this request, so that `started_before` finds its run.
    Raises Conflict with the reason and the mend when the spec cannot work.
    """
    check(session, project, spec)
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
        parent_id=parent_id,
    )
    session.add(run)
    session.flush()
    needed: list[int] = []
    if spec.training.objective.reads_cache:
        needed.append(ask_for_cache(session, run, spec, owner).id)
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
            idempotency_key=key,
        ),
    )
    link(session, run, training, "train")
    return run, training


def started_before(session: Session, project: Project, key: str) -> Run | None:
    """Return the run that a request of this key has started; waits for one that is under way."""
    session.scalar(select(Project.id).where(Project.id == project.id).with_for_update())
    return session.scalar(
        select(Run)
        .join(RunJob, RunJob.run_id == Run.id)
        .join(Job, Job.id == RunJob.job_id)
        .where(Job.project_id == project.id, Job.idempotency_key == key)
    )


def link(session: Session, run: Run, job: Job, role: str) -> None:
    session.add(RunJob(run_id=run.id, job_id=job.id, role=role))
    session.flush()


def resolve(session: Session, project: Project, wanted: RunRequest) -> RunSpec:
    """Turn names into ids of this project. Raises InvalidInput with the field that is wrong."""
    teacher_id = _checkpoint_id(session, project, wanted.teacher, wanted.teacher_id, "teacher")
    if not wanted.gives("teacher", "teacher_id") and wanted.role != "fine_tune":
        teacher_id = project.teacher_id
    student_id = _checkpoint_id(session, project, wanted.student, wanted.student_id, "student")
    student_id = student_id if student_id is not None else project.student_id
    if student_id is None:
        raise InvalidInput(
            "A run needs a student.", fields={"student": "Name a checkpoint of this project."}
        )
    values = wanted.model_dump(
        include={"name", "training", "capture", "evaluation", "group", "role"}
    )
    return RunSpec.model_validate(
        {
            **values,
            "teacher_id": teacher_id,
            "student_id": student_id,
            "dataset_version_id": _version_id(session, project, wanted),
        }
    )


def _checkpoint_id(
    session: Session, project: Project, name: str | int | None, given: int | None, field: str
) -> int | None:
    if name is None and given is None:
        return None
    found = None
    if isinstance(name, str):
        found = checkpoint_queries.by_name(session, project.id, name)
    number = given if name is None else name
    if found is None and str(number).isdecimal():
        found = checkpoint_queries.one(session, project.id, int(str(number)))
    if found is None:
        known = ", ".join(c.name for c in checkpoint_queries.of_project(session, project.id))
        sentence = f"This project has no checkpoint “{number}”. It has: {known or 'none yet'}."
        raise InvalidInput(sentence, fields={field: sentence})
    return found.id


def _version_id(session: Session, project: Project, wanted: RunRequest) -> int:
    if wanted.dataset_version_id is not None or isinstance(wanted.dataset, int):
        number = wanted.dataset if wanted.dataset_version_id is None else wanted.dataset_version_id
        found = dataset_queries.version(session, project.id, int(number or 0))
        missing = f"This project has no dataset version {number}."
    else:
        name, _, version = (wanted.dataset or "").rpartition("@")
        if not version.isdecimal():
            name, version = wanted.dataset or "", ""
        found = _newest(session, project, name, version)
        which = f"version {version}" if version else "frozen version"
        of = f" of “{name}”" if name else ""
        missing = f"This project has no {which}{of}. Freeze one, or name another."
    if found is None:
        raise InvalidInput(missing, fields={"dataset": missing})
    return found.id


def _newest(session: Session, project: Project, name: str, number: str) -> DatasetVersion | None:
    """Return the version `number` of a dataset, or its newest frozen one; any dataset without."""
    for version in dataset_queries.versions_of(session, project.id):
        if name and version.dataset.name != name:
            continue
        if version.number == int(number) if number else version.state == "frozen":
            return version
    return None


def subject_of(session: Session, project: Project, spec: RunSpec) -> Subject:
    """Return the rows a spec names. Raises NotFound for those of no or another project."""
    version = dataset_queries.version(session, project.id, spec.dataset_version_id)
    if version is None:
        raise NotFound(f"This project has no dataset version {spec.dataset_version_id}.")
    student = checkpoints.get(session, project.id, spec.student_id)
    teacher = None
    if spec.teacher_id is not None:
        teacher = checkpoints.get(session, project.id, spec.teacher_id)
    return Subject(version, student, teacher)


def check(session: Session, project: Project, spec: RunSpec) -> None:
    """Raise Conflict with the reason and the mend when the spec cannot work."""
    found = look(session, subject_of(session, project, spec), spec, project.id)
    if found.blocked is not None:
        raise Conflict(found.blocked)


def estimate(
    session: Session,
    project: Project,
    spec: RunSpec,
    settings: Settings,
    *,
    anchors: Mapping[str, Checkpoint] | None = None,
    beside: Sequence[RunSpec] = (),
) -> EstimateOut:
    """Return what a run would read, take and last, and why it cannot start if so.

    beside: runs that are to be started before it, at once.
    """
    subject = subject_of(session, project, spec)
    found = look(session, subject, spec, project.id)
    return estimates.estimate(
        session, subject, spec, found, settings, anchors=anchors or {}, beside=beside
    )


def get(session: Session, project: Project, number: int) -> RunView:
    found = queries.by_number(session, project.id, number)
    if found is None:
        raise NotFound(f"This project has no run #{number}.")
    return found


def cancel(session: Session, view: RunView, mode: CancelMode) -> None:
    """Stop a run. What waits ends at once; what works is asked to stop, and keeps or discards.

    A teacher cache that another open run waits for goes on; filled shards always stay. Of a run
    that has ended, the snapshots it left are discarded.
    """
    if not view.alive:
        left = view.phase("train") if mode == "discard" else None
        if left is None or not discard(session, left.job.id):
            raise Conflict(f"Run #{view.run.number} has already ended: {view.state}.")
        return
    # From the last to the first: a dependant that is still blocked ends by its own request.
    for phase in reversed(view.phases):
        job = session.scalar(select(Job).where(Job.id == phase.job.id).with_for_update())
        if job is None or JobState(job.state).terminal or job.state == JobState.CANCELLING:
            continue
        shared = queries.others_waiting_for(session, job.id, view.run.id)
        if phase.role == "precompute" and shared:
            continue
        request_cancel(session, job.id, mode)
        if phase.role == "precompute":
            cancel_parts(session, job.id, mode)
    session.flush()


def retry(session: Session, view: RunView, *, owner: str) -> list[Job]:
    """Try again what failed or was cancelled, as new jobs in the old order; return them.

    Training goes on from its newest snapshot, where one is left. Where its weights were kept, only
    what follows is done.
    """
    if view.alive:
        raise Conflict(f"Run #{view.run.number} is {view.state}: nothing needs to be tried again.")
    made: list[Job] = []
    before: list[int] = []
    for phase in view.phases:
        state = JobState(phase.job.state)
        kept = phase.role != "evaluate" and view.run.checkpoint_id is not None
        if phase.role == "precompute" and not kept and state == JobState.SUCCEEDED:
            if rows_were_lost(session, view.run):
                spec = RunSpec.model_validate(view.run.spec)
                made.append(ask_for_cache(session, view.run, spec, owner))
                before = [made[-1].id]
            continue
        if state == JobState.SUCCEEDED or kept:
            continue
        if not state.terminal:  # a shared cache that another run asked for again
            before = [phase.job.id]
            continue
        again = jobs_service.retry(session, phase.job.id, owner=owner, depends_on=before)
        _replace(session, phase.job, again)
        made.append(again)
        before = [again.id]
    if not made:
        raise Conflict(f"Nothing of run #{view.run.number} is left to be tried again.")
    return made


def _replace(session: Session, old: Job, again: Job) -> None:
    """Let every run that needed a job need the one that tries it again."""
    links = session.scalars(select(RunJob).where(RunJob.job_id == old.id)).all()
    session.add_all(RunJob(run_id=e.run_id, job_id=again.id, role=e.role) for e in links)
    session.flush()


def trained(
    session: Session,
    run_id: int,
    card: CheckpointCard,
    folder: Path,
    settings: Settings,
    step: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Make the trained weights a checkpoint of the project, named after the run.

    step: the `step` they are of, whether it was the `best` and by what, and why training ended.
    """
    run = session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if run is None:
        raise NotFound("The run was removed while it trained.")
    blob = f"checkpoints/run-{run.id}-{card.weights_fingerprint[:32]}"
    checkpoints.store(session, folder, blob, settings)
    made = Checkpoint(
        project_id=run.project_id,
        name=f"#{run.number} {run.name}",
        state="registering",
        origin={"kind": "run", "run_id": run.id, **(step or {})},
    )
    session.add(made)
    session.flush()
    checkpoints.ready(session, made.id, card, blob)
    run.checkpoint_id = made.id
    session.flush()
    return made
