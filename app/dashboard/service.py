"""What takes several domains: a project with its teacher, students, cancel and retry of jobs."""

from typing import get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.checkpoints import service as checkpoints
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import PruneForm, StudentMake
from app.dashboard.schemas import STUDENT, NewProject, fields_begin
from app.datasets import service as datasets
from app.errors import Conflict, NotFound
from app.evaluations import service as evaluations
from app.jobs import queries as jobs
from app.jobs import service as job_service
from app.jobs.models import Job
from app.jobs.queries import JobLine
from app.projects import service as projects
from app.projects.models import Project
from app.projects.schemas import Role
from app.runs import queries as runs
from app.runs.models import Run, RunJob
from app.security.permissions import Principal
from app.settings import Settings
from app.specs.checkpoint import CheckpointCard, PruneSpec
from app.specs.jobs import CancelMode, JobKind
from app.specs.pruning import Shape, shape_after


def line(session: Session, job_id: int) -> JobLine:
    found = jobs.one(session, job_id)
    if found is None:
        raise NotFound(f"There is no job {job_id}.")
    return found


def create_project(
    session: Session, form: NewProject, *, settings: Settings, user: Principal
) -> Project:
    """Make a project; register the teacher and student that are named, each with its role."""
    named = {"teacher": form.teacher(), "student": form.student()}
    for prefix, add in (("", named["teacher"]), (STUDENT, named["student"])):
        with fields_begin(prefix):
            if add is not None:
                checkpoints.check_source(session, add.source, settings)
    project = projects.create(session, form, owner_id=user.user_id)
    for role in get_args(Role):
        add = named[role]
        if add is not None:
            row = checkpoints.register(session, project, add, settings=settings, owner=user.name)
            projects.use_as(session, project, role, row.id)
    return project


def cancel(session: Session, job_id: int, mode: CancelMode, settings: Settings) -> Job:
    """Stop a job. One that waited ends at once, so its secret goes at once too."""
    job = job_service.request_cancel(session, job_id, mode)
    if job.kind == JobKind.REGISTER and job.ended_at is not None:
        checkpoints.drop_token(settings, job.spec["checkpoint_id"])
    return job


def make_student(session: Session, project: Project, form: PruneForm, *, owner: str) -> Checkpoint:
    """Ask for a pruned student, named by its sizes when no name is given."""
    teacher = checkpoints.get(session, project.id, form.teacher_id)
    prune = form.prune()
    name = form.name or _name_of(teacher, prune)
    data = StudentMake(
        name=name,
        teacher_id=teacher.id,
        dataset_version_id=form.dataset_version_id,
        prune=prune,
    )
    made = checkpoints.make_student(session, project, data, owner=owner)
    if form.student:
        projects.use_as(session, project, "student", made.id)
    return made


def _name_of(teacher: Checkpoint, prune: PruneSpec) -> str:
    """Return such as `big-6x576`: the teacher's name, then layers × width."""
    if teacher.card is None:
        return f"{teacher.name}-student"[:80]
    shape = shape_after(Shape.of(CheckpointCard.model_validate(teacher.card)), prune)
    return f"{teacher.name[:60]}-{shape.depth}x{shape.width}"


def retry(session: Session, job_id: int, *, owner: str) -> Job:
    """Make a new job of a failed or cancelled one, and point what waits for it there.

    A job of a run starts the whole run again, from what has not succeeded.
    """
    run = session.scalar(
        select(Run).join(RunJob, RunJob.run_id == Run.id).where(RunJob.job_id == job_id)
    )
    if run is not None:
        return _retry_run(session, run, job_id, owner)
    again = job_service.retry(session, job_id, owner=owner)
    match again.kind:
        case JobKind.REGISTER | JobKind.PRUNE:
            checkpoints.retried(session, again)
        case JobKind.EVALUATE:
            evaluations.retried(session, again)
        case JobKind.INSPECT | JobKind.IMPORT | JobKind.FREEZE | JobKind.GENERATE:
            datasets.retried(session, again)
    return again


def _retry_run(session: Session, run: Run, job_id: int, owner: str) -> Job:
    view = runs.by_number(session, run.project_id, run.number)
    if view is not None:
        evaluations.retry_run(session, view, owner=owner)
    again = session.scalar(
        select(Job).where(Job.parent_id == job_id).order_by(Job.id.desc()).limit(1)
    )
    if again is None:
        raise Conflict(f"Run #{run.number} “{run.name}” goes on without this job.")
    return again
