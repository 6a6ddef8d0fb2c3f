"""Pages: the runs of a project, and one of them live."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session
from sse_starlette import EventSourceResponse
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from app.dashboard import run_list, run_view
from app.errors import AppError
from app.evaluations import service as evaluations
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.runs import queries, service
from app.runs.schemas import CancelRequest
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, require, still_signed_in
from app.web.forms import Form, empty_form, form_of
from app.web.sse import event_stream
from app.web.templating import is_partial, render

router = APIRouter(include_in_schema=False, prefix="/projects/{project}/runs")
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]
CANCEL = form_of(CancelRequest)
ALL_LINES = 100_000


def address(project: Project, number: int) -> str:
    return f"/projects/{project.slug}/runs/{number}"


def crumbs(project: Project, *rest: tuple[str, str | None]) -> tuple[tuple[str, str | None], ...]:
    home = (project.name, f"/projects/{project.slug}")
    runs = ("Runs", f"/projects/{project.slug}/runs" if rest else None)
    return (("Projects", "/projects"), home, runs, *rest)


@router.get("", name="runs.index", dependencies=READ)
def index(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    found = run_list.page_of(session, project, request.url.path, dict(request.query_params))
    context = {**found, "project": project, "crumbs": crumbs(project), "nav": "runs"}
    return render(request, "runs/index.html", context, block="rows")


@router.get("/{number}", name="runs.show", dependencies=READ)
def show(request: Request, project: ProjectDep, number: int, session: SessionDep) -> Response:
    return _page(request, session, project, number)


def _page(
    request: Request,
    session: Session,
    project: Project,
    number: int,
    *,
    form: Form[Any] | None = None,
    status: int = 200,
) -> Response:
    view = service.get(session, project, number)
    context = run_view.live_of(session, project, view)
    if not is_partial(request):
        context |= run_view.rest_of(session, context)
    last = (f"#{number} {view.run.name}", None)
    context |= {"crumbs": crumbs(project, last), "nav": "runs"}
    context["form"] = form or empty_form(mode="keep")
    return render(request, "runs/show.html", context, block="live", status=status)


@router.get("/{number}/events", name="runs.events", dependencies=READ)
def events(
    request: Request, project: ProjectDep, number: int, session: SessionDep, after: int = 0
) -> EventSourceResponse:
    streams = queries.streams_of(service.get(session, project, number))
    allowed = still_signed_in(request)
    return event_stream(request, *streams, after=after, still_allowed=allowed)


@router.get("/{number}/log", name="runs.log", dependencies=READ)
def log(project: ProjectDep, number: int, session: SessionDep) -> PlainTextResponse:
    """Every line of the run's jobs as text."""
    lines = queries.log_of(session, service.get(session, project, number), limit=ALL_LINES)
    text = "".join(f"{line.at:%Y-%m-%d %H:%M:%S} {line.level} {line.text}\n" for line in lines)
    return PlainTextResponse(text)


@router.post("/{number}/cancel", name="runs.cancel", dependencies=WRITE)
def cancel(
    request: Request,
    project: ProjectDep,
    number: int,
    session: SessionDep,
    form: Annotated[Form[CancelRequest], Depends(CANCEL)],
) -> Response:
    if form.data is None:
        return _page(request, session, project, number, form=form, status=422)
    try:
        service.cancel(session, service.get(session, project, number), form.data.mode)
    except AppError as error:
        form.refuse(error)
        return _page(request, session, project, number, form=form, status=error.status)
    return RedirectResponse(address(project, number), status_code=303)


@router.post("/{number}/retry", name="runs.retry", dependencies=WRITE)
def retry(
    request: Request, project: ProjectDep, number: int, session: SessionDep, user: CurrentUser
) -> Response:
    form = empty_form(mode="keep")
    try:
        view = service.get(session, project, number)
        evaluations.retry_run(session, view, owner=user.name)
    except AppError as error:
        form.refuse(error)
        return _page(request, session, project, number, form=form, status=error.status)
    return RedirectResponse(address(project, number), status_code=303)
