"""Jobs of every project and the workers that take them, under /api/v1."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse

from app.dashboard import queries, service
from app.dashboard.schemas import CancelRequest, JobOut, WorkerOut
from app.events.queries import log_lines
from app.jobs import queries as jobs
from app.projects import service as projects
from app.runs.queries import log_line
from app.runs.schemas import RunLog
from app.security.permissions import Permission
from app.specs.jobs import JobState
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require, still_signed_in
from app.web.sse import DESCRIBED, event_stream

router = APIRouter(prefix="/api/v1", tags=["jobs"])
Limit = Annotated[int, Query(ge=1, le=500)]
LogLimit = Annotated[int, Query(ge=1, le=10_000)]


@router.get("/jobs", dependencies=[require(Permission.READ)])
def list_jobs(
    session: SessionDep,
    state: JobState | None = None,
    project: str | None = None,
    limit: Limit = 100,
) -> list[JobOut]:
    """Return jobs, the newest first; `project` is a slug."""
    project_id = projects.get(session, project).id if project is not None else None
    lines = jobs.find(session, state=state, project_id=project_id, limit=limit)
    return queries.shown(session, lines)


@router.get("/jobs/{job_id}", dependencies=[require(Permission.READ)])
def show_job(job_id: int, session: SessionDep) -> JobOut:
    return queries.shown(session, [service.line(session, job_id)])[0]


@router.get(
    "/jobs/{job_id}/events",
    dependencies=[require(Permission.READ)],
    response_class=EventSourceResponse,
    responses=DESCRIBED,
)
def job_events(
    request: Request, job_id: int, session: SessionDep, after: int = 0
) -> EventSourceResponse:
    """Follow the stream a job reports to (`stream`), which jobs of one subject share."""
    stream = service.line(session, job_id).job.stream
    return event_stream(request, stream, after=after, still_allowed=still_signed_in(request))


@router.get("/jobs/{job_id}/log", dependencies=[require(Permission.READ)])
def job_log(job_id: int, session: SessionDep, limit: LogLimit = 1000) -> RunLog:
    """Return the newest log lines of a job, oldest first."""
    stream = service.line(session, job_id).job.stream
    events = log_lines(session, stream, limit=limit)
    return RunLog(lines=[log_line(event) for event in events if event.job_id == job_id])


@router.post("/jobs/{job_id}/cancel", status_code=202, dependencies=[require(Permission.WRITE)])
def cancel_job(
    job_id: int, session: SessionDep, settings: SettingsDep, data: CancelRequest | None = None
) -> JobOut:
    """Stop a job: at once while it waits, else its worker stops it (shown as cancelling)."""
    mode = (data or CancelRequest()).mode
    job = service.cancel(session, job_id, mode, settings)
    return queries.shown(session, [service.line(session, job.id)])[0]


@router.post("/jobs/{job_id}/retry", status_code=201, dependencies=[require(Permission.WRITE)])
def retry_job(job_id: int, session: SessionDep, user: CurrentUser) -> JobOut:
    """Make a new job of a failed or cancelled one; the answer is the new job."""
    job = service.retry(session, job_id, owner=user.name)
    return queries.shown(session, [service.line(session, job.id)])[0]


@router.get("/workers", dependencies=[require(Permission.READ)])
def list_workers(session: SessionDep) -> list[WorkerOut]:
    """Return the workers heard within the last hour, as the queue shows them."""
    return [WorkerOut.model_validate(line) for line in jobs.workers(session)]
