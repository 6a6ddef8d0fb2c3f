"""Projects and checkpoints under /api/v1 with what lower domains do not know of them."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.checkpoints import api as checkpoints_api
from app.checkpoints import queries as checkpoints
from app.checkpoints import service
from app.dashboard import caches, home, queries, removal
from app.dashboard.facts import LastVerdict
from app.dashboard.home import ProjectRow
from app.dashboard.schemas import (
    CacheSpaceOut,
    CheckpointDetail,
    NextStepOut,
    OverviewOut,
    ProjectOverview,
    RunUseOut,
    StepOut,
    VerdictOut,
)
from app.evaluations.schemas import DifferenceOut
from app.projects import api as projects_api
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.teacher_cache import service as teacher_cache
from app.web.deps import SessionDep, SettingsDep, commit_now, require
from app.web.tables import ListOrder, read_state

router = APIRouter(prefix="/api/v1", tags=["projects"])
READ = [require(Permission.READ)]
Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/overview", dependencies=READ)
def list_overview(
    request: Request,
    session: SessionDep,
    order: ListOrder,
    search: str = "",
    limit: Limit = 100,
) -> list[OverviewOut]:
    """Return projects with state, verdict and owner, as in the list of projects.

    Sorted by `activity` (what was last worked on first), `name` or `runs`.
    """
    query = {**order, "search": search}
    state = read_state(request.url.path, query, home.COLUMNS, filters=("search",))
    return [_shown(row) for row in home.overview(session, state, limit=limit)]


@router.get("/projects/{project}/overview", dependencies=READ)
def show_overview(project: ProjectDep, session: SessionDep) -> ProjectOverview:
    """Return where a project stands: its steps, the next action and the last verdict."""
    row = home.overview_of(session, project)
    steps = [StepOut.model_validate(step) for step in home.steps_of(session, row.facts)]
    return ProjectOverview(**dict(_shown(row)), steps=steps)


@router.get("/projects/{project}/checkpoints/{checkpoint_id}", dependencies=READ)
def show_checkpoint(
    project: ProjectDep, checkpoint_id: int, session: SessionDep
) -> CheckpointDetail:
    row = service.get(session, project.id, checkpoint_id)
    found = checkpoints_api.shown(checkpoints.lines(session, project))
    runs = [RunUseOut.model_validate(use) for use in queries.uses_of(session, row.id)]
    used_by = removal.uses_of(session, project, row).all
    out = next(out for out in found if out.id == row.id)
    return CheckpointDetail(**dict(out), runs=runs, used_by=used_by)


@router.delete(
    "/projects/{project}/checkpoints/{checkpoint_id}",
    status_code=204,
    dependencies=[require(Permission.WRITE)],
)
def remove_checkpoint(
    request: Request,
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
) -> Response:
    """Remove a checkpoint that nothing uses (`used_by`), with its jobs and its files here."""
    files = removal.remove_checkpoint(session, project, checkpoint_id, settings)
    commit_now(request, session)
    service.drop_files(session, files, settings)
    return Response(status_code=204)


@router.get("/projects/{project}/caches", dependencies=READ)
def list_caches(project: ProjectDep, session: SessionDep) -> list[CacheSpaceOut]:
    """Return the teacher caches of the project's checkpoints, the largest first."""
    return [CacheSpaceOut.of(line) for line in caches.lines(session, project)]


@router.delete(
    "/projects/{project}/caches/{address}",
    status_code=204,
    dependencies=[require(Permission.WRITE)],
)
def remove_cache(
    request: Request, project: ProjectDep, address: str, session: SessionDep, settings: SettingsDep
) -> Response:
    """Remove a teacher cache that no open job uses; what needs it again is captured anew."""
    caches.remove(session, project, address)
    commit_now(request, session)
    teacher_cache.drop_files(session, address, settings)
    return Response(status_code=204)


def _shown(row: ProjectRow) -> OverviewOut:
    facts, step = row.facts, row.step
    project, student = facts.project, facts.student
    found = student.compression if student is not None else None
    address = f"/projects/{project.slug}"
    return OverviewOut(
        **dict(projects_api.shown(project)),
        owner=row.owner,
        created_at=project.created_at,
        activity=row.activity,
        runs=project.last_run_number,
        teacher=facts.teacher.row.name if facts.teacher else None,
        student=student.row.name if student else None,
        compute=found.compute if found else None,
        next=NextStepOut(
            **asdict(step),
            href=f"{address}/{step.tail}" if step.tail else address,
        ),
        verdict=_verdict(facts.verdict, row.words) if facts.verdict else None,
    )


def _verdict(found: LastVerdict, words: str) -> VerdictOut:
    difference = found.difference
    if difference is None:
        text = "The teacher is not evaluated on that set."
        return VerdictOut(
            run=found.run, name=found.name, words="not compared", sentence=text, difference=None
        )
    return VerdictOut(
        run=found.run,
        name=found.name,
        words=words,
        sentence=difference.sentence,
        difference=DifferenceOut(
            **{k: v for k, v in asdict(difference).items() if k != "sentence"}
        ),
    )
