"""Runs under /api/v1: starting one also asks for its evaluation, which runs does not know."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from sqlalchemy.orm import Session
from sse_starlette import EventSourceResponse

from app.dashboard import run_list, run_view
from app.dashboard.schemas import RunDetail, RunsRequest
from app.evaluations import service as evaluations
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.runs import previews, queries, service
from app.runs.models import Run
from app.runs.queries import RunView
from app.runs.schemas import (
    CancelRequest,
    EstimateOut,
    PreviewOut,
    RunLog,
    RunOut,
    RunRequest,
)
from app.security.permissions import Permission
from app.settings import Settings
from app.specs.jobs import JobState
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require, still_signed_in
from app.web.sse import DESCRIBED, event_stream
from app.web.tables import ListOrder

router = APIRouter(prefix="/api/v1/projects/{project}/runs", tags=["runs"])
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]


def _shown(session: Session, views: list[RunView]) -> list[RunOut]:
    parents = [v.run.parent_id for v in views if v.run.parent_id is not None]
    numbers = queries.numbers_of(session, parents)
    return [queries.shown(view, numbers) for view in views]


def _one(session: Session, project: Project, number: int) -> RunOut:
    return _shown(session, [service.get(session, project, number)])[0]


@router.get("", dependencies=READ)
def list_runs(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    order: ListOrder,
    search: str = "",
    group: str = "",
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RunOut]:
    """Return runs as in their list, sorted by `number` (newest first), `name` or `value`.

    The value is that of the project's deciding metric.
    """
    query = {**order, "search": search, "group": group, "state": state or ""}
    found = run_list.listed(session, project, request.url.path, query, limit=limit)
    return _shown(session, found)


@router.post("", status_code=201, dependencies=WRITE)
def start_run(
    project: ProjectDep,
    wanted: RunRequest,
    session: SessionDep,
    user: CurrentUser,
    settings: SettingsDep,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> RunOut:
    """Start a run; a second request with the same Idempotency-Key returns the first one's."""
    runs = _started(session, project, [wanted], user, settings, idempotency_key)
    return _one(session, project, runs[0].number)


@router.post("/group", status_code=201, dependencies=WRITE)
def start_runs(
    project: ProjectDep,
    wanted: RunsRequest,
    session: SessionDep,
    user: CurrentUser,
    settings: SettingsDep,
    idempotency_key: Annotated[str | None, Header(max_length=180)] = None,
) -> list[RunOut]:
    """Start several runs or none: a list, or one run whose settings list values."""
    runs = _started(session, project, wanted.root, user, settings, idempotency_key)
    return _shown(session, [service.get(session, project, run.number) for run in runs])


def _started(
    session: Session,
    project: Project,
    wanted: Sequence[RunRequest],
    user: CurrentUser,
    settings: Settings,
    key: str | None,
) -> list[Run]:
    """Start the runs; the first has the request's key itself, as if it came alone."""
    return [
        evaluations.start_run(
            session,
            project,
            service.resolve(session, project, one),
            owner=user.name,
            owner_id=user.user_id,
            key=f"{key}:{at}" if key and at else key,
            settings=settings,
        )
        for at, one in enumerate(wanted)
    ]


@router.post("/estimate", dependencies=READ)
def estimate_run(
    project: ProjectDep, wanted: RunRequest, session: SessionDep, settings: SettingsDep
) -> EstimateOut:
    spec = service.resolve(session, project, wanted)
    return evaluations.estimate(session, project, spec, settings)


@router.post("/preview", status_code=202, dependencies=WRITE)
def ask_for_preview(
    project: ProjectDep, wanted: RunRequest, session: SessionDep, user: CurrentUser
) -> PreviewOut:
    """Ask which tokens a run would learn; an equal question gets the answer there is."""
    spec = service.resolve(session, project, wanted)
    return _preview(session, project, previews.ask(session, project, spec, owner=user.name).id)


@router.get("/preview/{job_id}", dependencies=READ)
def show_preview(project: ProjectDep, job_id: int, session: SessionDep) -> PreviewOut:
    return _preview(session, project, job_id)


def _preview(session: Session, project: Project, job_id: int) -> PreviewOut:
    job, found = previews.get(session, project, job_id)
    return PreviewOut(job_id=job.id, state=job.state, message=job.error_message, preview=found)


@router.get("/{number}", dependencies=READ)
def show_run(project: ProjectDep, number: int, session: SessionDep) -> RunDetail:
    """Return a run with its attempts and the newest snapshots; the list leaves them out."""
    view = service.get(session, project, number)
    return run_view.detail_of(session, view, _shown(session, [view])[0])


@router.get(
    "/{number}/events",
    dependencies=READ,
    response_class=EventSourceResponse,
    responses=DESCRIBED,
)
def run_events(
    request: Request, project: ProjectDep, number: int, session: SessionDep, after: int = 0
) -> EventSourceResponse:
    """Follow a run live: its events after an id (0: from the start) as server-sent events."""
    streams = queries.streams_of(service.get(session, project, number))
    allowed = still_signed_in(request)
    return event_stream(request, *streams, after=after, still_allowed=allowed)


@router.post("/{number}/cancel", status_code=202, dependencies=WRITE)
def cancel_run(
    project: ProjectDep, number: int, wanted: CancelRequest, session: SessionDep
) -> RunOut:
    service.cancel(session, service.get(session, project, number), wanted.mode)
    return _one(session, project, number)


@router.post("/{number}/retry", status_code=202, dependencies=WRITE)
def retry_run(project: ProjectDep, number: int, session: SessionDep, user: CurrentUser) -> RunOut:
    view = service.get(session, project, number)
    evaluations.retry_run(session, view, owner=user.name)
    return _one(session, project, number)


@router.get("/{number}/log", dependencies=READ)
def run_log(
    project: ProjectDep,
    number: int,
    session: SessionDep,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> RunLog:
    view = service.get(session, project, number)
    return RunLog(lines=queries.log_of(session, view, limit=limit))


@router.get("/{number}/series", dependencies=READ)
def run_series(
    project: ProjectDep, number: int, session: SessionDep
) -> dict[str, list[tuple[int, float]]]:
    """Return metric → [[step, value], …] of the training, at most 2,000 points each."""
    view = service.get(session, project, number)
    return queries.series_of(session, view)
