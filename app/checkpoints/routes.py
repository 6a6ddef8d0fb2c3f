"""Pages: the checkpoints of a project."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.checkpoints import queries
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import SessionDep, require
from app.web.templating import render

router = APIRouter(include_in_schema=False)


@router.get(
    "/projects/{project}/checkpoints",
    name="checkpoints.index",
    dependencies=[require(Permission.READ)],
)
def index(request: Request, project: ProjectDep, session: SessionDep) -> Response:
    home = f"/projects/{project.slug}"
    crumbs = (("Projects", "/projects"), (project.name, home), ("Checkpoints", None))
    found = queries.lines(session, project)
    context = {"project": project, "items": found, "crumbs": crumbs, "nav": "checkpoints"}
    return render(request, "checkpoints/index.html", context, block="rows")
