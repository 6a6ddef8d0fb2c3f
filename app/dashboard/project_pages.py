"""Pages: the projects, a new one, its home, and what may change."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from app.checkpoints import queries as checkpoints
from app.dashboard import home, service
from app.dashboard.schemas import NewProject
from app.errors import AppError
from app.metrics.registry import DECIDING, METRICS
from app.projects import service as projects
from app.projects.api import ProjectDep
from app.projects.models import Project
from app.projects.schemas import GOALS, ProjectEdit
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, SettingsDep, require
from app.web.forms import Form, empty_form, form_of
from app.web.tables import read_state
from app.web.templating import render

router = APIRouter(prefix="/projects", include_in_schema=False)
READ, WRITE = [require(Permission.READ)], [require(Permission.WRITE)]
METRIC_CHOICES = [(name, f"{METRICS[name].label}: {METRICS[name].meaning}") for name in DECIDING]
NewDep = Annotated[Form[NewProject], Depends(form_of(NewProject))]
EditDep = Annotated[Form[ProjectEdit], Depends(form_of(ProjectEdit))]


@router.get("", name="projects.index", dependencies=READ)
def index(request: Request, session: SessionDep) -> Response:
    state = read_state("/projects", request.query_params, home.COLUMNS, filters=("search",))
    context = {
        "page": home.project_page(session, state),
        "state": state,
        "columns": {column.key: column for column in home.COLUMNS},
        "crumbs": (("Projects", None),),
        "nav": "projects",
    }
    return render(request, "projects/index.html", context, block="rows")


def _new_page(request: Request, form: Form[Any], status: int = 200) -> Response:
    crumbs = (("Projects", "/projects"), ("New project", None))
    context = {"form": form, "goals": GOALS, "metrics": METRIC_CHOICES, "crumbs": crumbs}
    return render(request, "projects/new.html", {**context, "nav": "projects"}, status=status)


@router.get("/new", name="projects.new", dependencies=WRITE)
def new(request: Request) -> Response:
    values = NewProject(name="x").model_dump(exclude={"name"}) | {"tolerance": "2"}
    return _new_page(request, empty_form(**values))


@router.post("", name="projects.create", dependencies=WRITE)
def create(
    request: Request, session: SessionDep, settings: SettingsDep, user: CurrentUser, form: NewDep
) -> Response:
    if form.data is not None:
        try:
            made = service.create_project(session, form.data, settings=settings, user=user)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(f"/projects/{made.slug}", status_code=303)
    form.values |= {"token": "", "student_token": ""}
    return _new_page(request, form, status=422)


@router.get("/{project}", name="projects.show", dependencies=READ)
def show(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    crumbs = (("Projects", "/projects"), (project.name, None))
    context = {"project": project, "home": home.project_home(session, project), "crumbs": crumbs}
    return render(request, "projects/show.html", {**context, "nav": "overview"}, block="home")


def _edit_page(
    request: Request, session: SessionDep, project: Project, form: Form[Any], status: int = 200
) -> Response:
    # A checkpoint in the making may be chosen already, as the one named with a new project is.
    found = [x for x in checkpoints.lines(session, project) if x.state == "ready" or x.role]
    choices = [
        (x.row.id, x.row.name if x.state == "ready" else f"{x.row.name} ({x.words})") for x in found
    ]
    crumbs = (
        ("Projects", "/projects"),
        (project.name, f"/projects/{project.slug}"),
        ("Edit", None),
    )
    context = {"project": project, "form": form, "goals": GOALS, "metrics": METRIC_CHOICES}
    context |= {"checkpoints": choices, "crumbs": crumbs, "nav": "overview"}
    return render(request, "projects/edit.html", context, status=status)


@router.get("/{project}/edit", name="projects.edit", dependencies=WRITE)
def edit(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    names = (
        "name",
        "goal",
        "description",
        "deciding_metric",
        "teacher_id",
        "student_id",
        "version",
    )
    values = {name: getattr(project, name) for name in names}
    values["tolerance"] = f"{projects.shown_tolerance(project):g}"
    form = empty_form(**{name: value for name, value in values.items() if value is not None})
    return _edit_page(request, session, project, form)


@router.post("/{project}/edit", name="projects.save", dependencies=WRITE)
def save(request: Request, project: ProjectDep, session: SessionDep, form: EditDep) -> Response:
    if form.data is not None:
        try:
            projects.edit(session, project, form.data)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse(f"/projects/{project.slug}", status_code=303)
    return _edit_page(request, session, project, form, status=422)
