"""Pages: the projects, and a new one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from app.errors import AppError
from app.metrics.registry import DECIDING, METRICS
from app.projects import queries, service
from app.projects.schemas import GOALS, ProjectCreate
from app.security.permissions import Permission
from app.web.deps import CurrentUser, SessionDep, require
from app.web.forms import Form, empty_form, form_of
from app.web.templating import render

router = APIRouter(include_in_schema=False)
CREATE = form_of(ProjectCreate)


def _page(request: Request, form: Form[ProjectCreate], status: int = 200) -> Response:
    metrics = [(name, METRICS[name].label) for name in DECIDING]
    crumbs = (("Projects", "/projects"), ("New project", None))
    context = {"form": form, "goals": GOALS, "metrics": metrics, "crumbs": crumbs}
    return render(request, "projects/new.html", {**context, "nav": "projects"}, status=status)


@router.get("/projects", name="projects.index", dependencies=[require(Permission.READ)])
def index(request: Request, session: SessionDep, search: str = "") -> Response:
    found = queries.all_projects(session, search=search)
    context = {"projects": found, "search": search, "crumbs": (("Projects", None),)}
    return render(request, "projects/index.html", {**context, "nav": "projects"}, block="rows")


@router.get("/projects/new", name="projects.new", dependencies=[require(Permission.WRITE)])
def new(request: Request) -> Response:
    values = ProjectCreate(name="x").model_dump(exclude={"name"}, exclude_none=True)
    return _page(request, empty_form(**values))


@router.post("/projects", dependencies=[require(Permission.WRITE)])
def create(
    request: Request,
    session: SessionDep,
    user: CurrentUser,
    form: Annotated[Form[ProjectCreate], Depends(CREATE)],
) -> Response:
    if form.data is not None:
        try:
            service.create(session, form.data, owner_id=user.user_id)
        except AppError as error:
            form.refuse(error)
        else:
            return RedirectResponse("/projects", status_code=303)
    return _page(request, form, status=422)
