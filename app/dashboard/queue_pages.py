"""Page: the queue of all projects, its workers, what ended lately; stop and retry a job."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from app.dashboard import queries, service
from app.dashboard.schemas import CancelRequest
from app.errors import InvalidInput
from app.projects import service as projects
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require
from app.web.forms import Form, form_of
from app.web.templating import render

router = APIRouter(prefix="/queue", include_in_schema=False)
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]


@router.get("", name="jobs.queue", dependencies=READ)
def index(request: Request, session: SessionDep, project: str = "") -> Response:
    only = projects.get(session, project) if project else None
    context = {
        "queue": queries.queue_view(session, only),
        "only": only,
        "crumbs": (("Queue", None),),
        "nav": "queue",
    }
    return render(request, "jobs/queue.html", context, block="queue")


@router.get("/{job_id}/stop", name="jobs.stop", dependencies=READ)
def ask_to_stop(request: Request, job_id: int, session: SessionDep) -> Response:
    """Ask how to stop a job: a dialog for htmx, a page otherwise."""
    line = service.line(session, job_id)
    context = {"line": line, "crumbs": (("Queue", "/queue"), ("Stop a job", None)), "nav": "queue"}
    return render(request, "jobs/stop.html", context, block="dialog")


@router.post("/{job_id}/cancel", name="jobs.cancel", dependencies=WRITE)
def cancel(
    job_id: int,
    session: SessionDep,
    settings: SettingsDep,
    form: Annotated[Form[CancelRequest], Depends(form_of(CancelRequest))],
) -> Response:
    if form.data is None:
        raise InvalidInput("A job is stopped with keep or discard.", fields=form.errors)
    service.cancel(session, job_id, form.data.mode, settings)
    return RedirectResponse("/queue", status_code=303)


@router.post("/{job_id}/retry", name="jobs.retry", dependencies=WRITE)
def retry(job_id: int, session: SessionDep, user: CurrentUser) -> Response:
    service.retry(session, job_id, owner=user.name)
    return RedirectResponse("/queue", status_code=303)
