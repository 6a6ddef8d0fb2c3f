"""Page: runs side by side."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.dashboard.compare_state import CompareState, Order
from app.dashboard.compare_view import compare_page
from app.evaluations.api import ChoiceDep, csv_answer
from app.metrics.tables import to_csv
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import SessionDep, require
from app.web.templating import render

router = APIRouter(include_in_schema=False)
KEYS = (("d", "show only columns that differ"), ("b", "make the row in focus the baseline"))


def _state(
    request: Request,
    choice: ChoiceDep,
    sort: str = "",
    order: Order = "desc",
    diff: Literal["0", "1"] = "1",
) -> CompareState:
    return CompareState(request.url.path, choice, sort or None, order, diff == "1")


@router.get(
    "/projects/{project}/compare", name="runs.compare", dependencies=[require(Permission.READ)]
)
def compare(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    state: Annotated[CompareState, Depends(_state)],
    format: Literal["html", "csv"] = "html",  # noqa: A002 - the query's name
) -> Response:
    page = compare_page(session, project, state)
    if format == "csv":
        return csv_answer(to_csv(page.csv), f"{project.slug}-comparison.csv")
    home = f"/projects/{project.slug}"
    context = {
        "project": project,
        "page": page,
        "home": home,
        "crumbs": ((project.name, home), ("Compare", None)),
        "nav": "compare",
        "page_keys": KEYS,
    }
    return render(request, "dashboard/compare.html", context, block="compare")
