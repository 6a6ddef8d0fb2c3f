"""Pages: one checkpoint with its job and where it is used, and the ways to a new one."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from sse_starlette import EventSourceResponse
from starlette.responses import RedirectResponse, Response

from app.checkpoints import queries as checkpoints
from app.checkpoints import service
from app.checkpoints.models import Checkpoint
from app.checkpoints.schemas import PruneForm, RegisterForm, ServerKey
from app.dashboard import queries, removal
from app.dashboard import service as dashboard
from app.datasets import generations
from app.datasets import queries as datasets
from app.datasets.schemas import AnswerForm, GenerationRequest
from app.errors import AppError, InvalidInput
from app.events.queries import last_event_id, log_lines
from app.projects import service as projects
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.security.permissions import Permission
from app.specs.jobs import CancelMode
from app.web.deps import (
    CurrentUser,
    SessionDep,
    SettingsDep,
    commit_now,
    require,
    still_signed_in,
)
from app.web.forms import Form, check_form, empty_form, form_of
from app.web.sse import event_stream
from app.web.templating import render

router = APIRouter(prefix="/projects/{project}/checkpoints", include_in_schema=False)
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]
Way = Literal["register", "prune"]
RegisterDep = Annotated[Form[RegisterForm], Depends(form_of(RegisterForm))]
ANSWER = {"max_new_tokens": "64", "batch_size": "32", "temperature": "0", "seed": "0"}
STORED = ("uploaded", "inspected")
"""States of an upload whose bytes are all there."""
PruneDep = Annotated[Form[PruneForm], Depends(form_of(PruneForm))]


def _address(project: Project, checkpoint_id: int | None = None) -> str:
    tail = f"/{checkpoint_id}" if checkpoint_id is not None else ""
    return f"/projects/{project.slug}/checkpoints{tail}"


def _crumbs(project: Project, last: str) -> tuple[tuple[str, str | None], ...]:
    home = f"/projects/{project.slug}"
    return (
        ("Projects", "/projects"),
        (project.name, home),
        ("Checkpoints", _address(project)),
        (last, None),
    )


def _new_page(
    request: Request,
    session: SessionDep,
    project: Project,
    way: Way,
    form: Form[Any],
    status: int = 200,
) -> Response:
    choices = queries.prune_choices(session, project)
    context = {
        "project": project,
        "way": way,
        "form": form,
        "choices": choices,
        "estimate": queries.cut_estimate(choices, check_form(form.values, PruneForm).data),
        "crumbs": _crumbs(project, "New checkpoint"),
        "nav": "checkpoints",
    }
    return render(request, "checkpoints/new.html", context, block="gauge", status=status)


def _role_to_fill(session: SessionDep, project: Project) -> str:
    """Return what a new checkpoint is likely for: the teacher that is missing, or what failed."""
    if project.teacher_id is None:
        return "teacher"
    roles = {project.teacher_id: "teacher", project.student_id: "student"}
    failed = (row for row in checkpoints.of_project(session, project.id) if row.state == "failed")
    return next((roles[row.id] for row in failed if row.id in roles), "")


@router.get("/new", name="checkpoints.new", dependencies=READ)
def new(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    way: Annotated[Way, Query()] = "register",
) -> Response:
    """Show one of the ways, filled with what is likely."""
    if way == "prune":
        choices = queries.prune_choices(session, project)
        return _new_page(request, session, project, way, empty_form(**choices.defaults(project)))
    values = {"kind": "folder", "revision": "main", "at_once": "8"}
    values["role"] = _role_to_fill(session, project)
    return _new_page(request, session, project, way, empty_form(**values))


@router.post("/new/register", name="checkpoints.register", dependencies=WRITE)
def register(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    form: RegisterDep,
) -> Response:
    if form.data is not None:
        try:
            data = form.data.add()
            row = service.register(session, project, data, settings=settings, owner=user.name)
            if form.data.role:
                projects.use_as(session, project, form.data.role, row.id)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(_address(project, row.id), status_code=303)
    form.values["token"] = form.values["api_key"] = ""
    return _new_page(request, session, project, "register", form, status=422)


@router.post("/new/prune", name="checkpoints.prune", dependencies=WRITE)
def prune(
    request: Request, project: ProjectDep, session: SessionDep, user: CurrentUser, form: PruneDep
) -> Response:
    if form.data is not None:
        try:
            row = dashboard.make_student(session, project, form.data, owner=user.name)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(_address(project, row.id), status_code=303)
    return _new_page(request, session, project, "prune", form, status=422)


@router.post("/new/estimate", name="checkpoints.estimate", dependencies=READ)
def estimate(
    request: Request, project: ProjectDep, session: SessionDep, form: PruneDep
) -> Response:
    """Answer (to htmx, the gauge alone) how much smaller a student of these sizes would be."""
    return _new_page(request, session, project, "prune", form)


@router.get("/{checkpoint_id}", name="checkpoints.show", dependencies=READ)
def show(
    request: Request,
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
) -> Response:
    row = service.get(session, project.id, checkpoint_id)
    return _shown(request, session, settings, (project, row), empty_form(**ANSWER))


def _shown(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    of: tuple[Project, Checkpoint],
    form: Form[Any],
    status: int = 200,
) -> Response:
    project, row = of
    stream = service.stream_of(row.id)
    lines = checkpoints.lines(session, project)
    context = {
        "project": project,
        "item": next(line for line in lines if line.row.id == row.id),
        "cut": checkpoints.cut_from(lines).get(row.id, []),
        "uses": queries.uses_of(session, row.id),
        "has_key": service.has_key(settings, row.id),
        "form": form,
        "uploads": [u for u in datasets.uploads_of(session, project.id) if u.state in STORED],
        "kept": removal.uses_of(session, project, row).sentence,
        "log": [event.payload["text"] for event in log_lines(session, stream)],
        "last_event_id": last_event_id(session, stream),
        "crumbs": _crumbs(project, row.name),
        "nav": "checkpoints",
    }
    return render(request, "checkpoints/show.html", context, block="facts", status=status)


@router.post("/{checkpoint_id}/answer", name="checkpoints.answer", dependencies=WRITE)
def answer(
    request: Request,
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    form: Annotated[Form[AnswerForm], Depends(form_of(AnswerForm))],
) -> Response:
    """Let it answer an upload; the answers are an upload among the project's data."""
    row = service.get(session, project.id, checkpoint_id)
    if form.data is not None:
        try:
            wanted = GenerationRequest(checkpoint=row.id, **form.data.model_dump())
            generations.start(session, project, wanted, owner=user.name)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(f"/projects/{project.slug}/datasets", status_code=303)
    return _shown(request, session, settings, (project, row), form, status=422)


@router.get("/{checkpoint_id}/events", name="checkpoints.events", dependencies=READ)
def events(
    request: Request, project: ProjectDep, checkpoint_id: int, session: SessionDep, after: int = 0
) -> EventSourceResponse:
    row = service.get(session, project.id, checkpoint_id)
    allowed = still_signed_in(request)
    return event_stream(request, service.stream_of(row.id), after=after, still_allowed=allowed)


@router.post("/{checkpoint_id}/retry", name="checkpoints.retry", dependencies=WRITE)
def retry(
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
    user: CurrentUser,
    form: Annotated[Form[RegisterForm], Depends(form_of(RegisterForm))],
) -> Response:
    row = service.get(session, project.id, checkpoint_id)
    token, key = (str(form.values.get(name) or "") for name in ("token", "api_key"))
    service.retry(session, row, settings=settings, owner=user.name, token=token, api_key=key)
    return RedirectResponse(_address(project, row.id), status_code=303)


@router.post("/{checkpoint_id}/key", name="checkpoints.key", dependencies=WRITE)
def set_key(
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
    form: Annotated[Form[ServerKey], Depends(form_of(ServerKey))],
) -> Response:
    """Replace or forget the API key of a checkpoint's server; an empty field changes nothing."""
    row = service.get(session, project.id, checkpoint_id)
    if form.data is None:
        raise InvalidInput("A key has visible ASCII characters only, and at most 500.")
    if form.data.api_key or form.values.get("forget"):
        forget = bool(form.values.get("forget"))
        service.set_key(settings, row, None if forget else form.data.api_key)
    return RedirectResponse(_address(project, row.id), status_code=303)


@router.post("/{checkpoint_id}/cancel", name="checkpoints.cancel", dependencies=WRITE)
def cancel(
    project: ProjectDep, checkpoint_id: int, session: SessionDep, settings: SettingsDep
) -> Response:
    row = service.get(session, project.id, checkpoint_id)
    mode: CancelMode = "discard"
    dashboard.cancel(session, service.job_of(row), mode, settings)
    return RedirectResponse(_address(project, row.id), status_code=303)


@router.post("/{checkpoint_id}/role/{role}", name="checkpoints.use_as", dependencies=WRITE)
def use_as(
    project: ProjectDep,
    checkpoint_id: int,
    role: Literal["teacher", "student"],
    session: SessionDep,
) -> Response:
    projects.use_as(session, project, role, checkpoint_id)
    return RedirectResponse(_address(project, checkpoint_id), status_code=303)


@router.post("/{checkpoint_id}/remove", name="checkpoints.remove", dependencies=WRITE)
def remove(
    request: Request,
    project: ProjectDep,
    checkpoint_id: int,
    session: SessionDep,
    settings: SettingsDep,
) -> Response:
    files = removal.remove_checkpoint(session, project, checkpoint_id, settings)
    commit_now(request, session)
    service.drop_files(session, files, settings)
    return RedirectResponse(_address(project), status_code=303)
