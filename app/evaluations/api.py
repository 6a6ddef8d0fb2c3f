"""Comparisons, evaluations and their examples under /api/v1."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from starlette.responses import JSONResponse, Response

from app.errors import InvalidInput
from app.evaluations import queries, service
from app.evaluations.comparing import compare_chosen
from app.evaluations.models import Evaluation
from app.evaluations.schemas import (
    Choice,
    ComparisonOut,
    EvaluationOut,
    EvaluationState,
    ExampleFilter,
    ExamplesOut,
    PromptOut,
)
from app.metrics.tables import comparison_table, figures_table, to_csv, to_markdown
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import SessionDep, SettingsDep, require
from app.web.tables import ListOrder, SortColumn, ordering, read_state

router = APIRouter(prefix="/api/v1/projects/{project}", tags=["evaluations"])
COLUMNS = (
    SortColumn("id", Evaluation.id, "desc"),
    SortColumn("name", Evaluation.name),
    SortColumn("role", Evaluation.role),
    SortColumn("state", Evaluation.state),
)
READ = [require(Permission.READ)]


def choice_of(
    run: Annotated[list[str] | None, Query()] = None,
    evaluation: Annotated[list[int] | None, Query()] = None,
    group: str | None = None,
    baseline: str | None = None,
) -> Choice:
    """Return what an address chooses: `run` and `evaluation` may be given many times."""
    return Choice(
        runs=tuple(run or ()),
        evaluations=tuple(evaluation or ()),
        group=group or None,
        baseline=baseline or None,
    )


ChoiceDep = Annotated[Choice, Depends(choice_of)]


def download(text: str, filename: str) -> Response:
    """Return a table as a file: CSV begins with the mark that tells spreadsheets of UTF-8."""
    is_csv = filename.endswith(".csv")
    return Response(
        "\ufeff" + text if is_csv else text,
        media_type="text/csv; charset=utf-8" if is_csv else "text/markdown; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{filename}"'},
    )


@router.get("/comparison", dependencies=READ, response_model=ComparisonOut)
def comparison(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    choice: ChoiceDep,
    format: str | None = None,  # noqa: A002 - the query's name
) -> Response:
    """Compare runs, evaluations or a group (default: the last group that has finished)."""
    if format not in (None, "json", "csv", "md"):
        raise InvalidInput(f"There is no format “{format}”: take json, csv or md.")
    found = compare_chosen(session, project, choice)
    accepted = request.headers.get("accept", "")
    if format == "csv" or (format is None and accepted.startswith("text/csv")):
        return download(to_csv(figures_table(found)), f"{project.slug}-comparison.csv")
    if format == "md":
        return download(to_markdown(comparison_table(found)), f"{project.slug}-comparison.md")
    return JSONResponse(found.as_json())


@router.get("/evaluations", dependencies=READ)
def list_evaluations(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    order: ListOrder,
    state: EvaluationState | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EvaluationOut]:
    """Return evaluations, sorted by `id` (newest first), `name`, `role` or `state`."""
    wanted = ordering(read_state(request.url.path, order, COLUMNS), Evaluation.id)
    return queries.listed(session, project.id, state=state, order=wanted, limit=limit)


@router.get("/evaluations/{evaluation_id}", dependencies=READ)
def show_evaluation(project: ProjectDep, evaluation_id: int, session: SessionDep) -> EvaluationOut:
    found = service.get(session, project.id, evaluation_id)
    return queries.listed(session, project.id, ids=[found.id])[0]


@router.get("/evaluations/{evaluation_id}/examples.parquet", dependencies=READ)
def download_examples(
    project: ProjectDep, evaluation_id: int, session: SessionDep, settings: SettingsDep
) -> FileResponse:
    """Download every example with its scores, as the evaluation wrote them."""
    found = service.get(session, project.id, evaluation_id)
    path = service.examples_path(found, settings)
    return FileResponse(path, filename=f"{project.slug}-evaluation-{found.id}.parquet")


@router.get("/evaluations/{evaluation_id}/examples", dependencies=READ)
def list_examples(
    project: ProjectDep,
    evaluation_id: int,
    session: SessionDep,
    settings: SettingsDep,
    wanted: Annotated[ExampleFilter, Query()],
) -> ExamplesOut:
    """Return examples, worst first, beside another evaluation's (default: the teacher's)."""
    found = service.get(session, project.id, evaluation_id)
    return service.examples(session, found, wanted, settings)


@router.get("/evaluations/{evaluation_id}/prompts/{conversation_id}", dependencies=READ)
def show_prompt(
    project: ProjectDep,
    evaluation_id: int,
    conversation_id: str,
    session: SessionDep,
    settings: SettingsDep,
) -> PromptOut:
    """Return the whole prompt of an example; examples carry its last 500 characters."""
    found = service.get(session, project.id, evaluation_id)
    return service.prompt(session, found, conversation_id, settings)
