"""Page: runs side by side."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.dashboard.compare_settings import COLUMNS
from app.dashboard.compare_state import CompareState, Order
from app.dashboard.compare_view import AGAINST_TEACHER, NAME, compare_page
from app.evaluations.api import ChoiceDep, download
from app.metrics.registry import METRICS
from app.metrics.tables import comparison_table, to_csv, to_markdown
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import SessionDep, require
from app.web.tables import UnknownOrder
from app.web.templating import render

router = APIRouter(include_in_schema=False)
SORTS = (NAME, AGAINST_TEACHER, *METRICS, *(column.key for column in COLUMNS))
KEYS = (("d", "show only columns that differ"), ("b", "make the row in focus the baseline"))


def _state(
    request: Request,
    choice: ChoiceDep,
    sort: str = "",
    order: Order = "desc",
    diff: Literal["0", "1"] = "1",
) -> CompareState:
    state = CompareState(request.url.path, choice, sort or None, order, diff == "1")
    if sort and sort not in SORTS:
        raise UnknownOrder("sort", sort, SORTS, state.link(sort=None))
    return state


@router.get(
    "/projects/{project}/compare", name="runs.compare", dependencies=[require(Permission.READ)]
)
def compare(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    state: Annotated[CompareState, Depends(_state)],
    format: Literal["html", "csv", "md"] = "html",  # noqa: A002 - the query's name
) -> Response:
    page = compare_page(session, project, state)
    if format == "csv":
        return download(to_csv(page.csv), f"{project.slug}-comparison.csv")
    if format == "md":
        text = to_markdown(comparison_table(page.comparison))
        return download(text, f"{project.slug}-comparison.md")
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
