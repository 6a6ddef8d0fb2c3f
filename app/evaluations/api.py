"""Comparisons, evaluations and their examples under /api/v1."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import JSONResponse, Response

from app.errors import InvalidInput
from app.evaluations import queries, service
from app.evaluations.comparing import compare_chosen
from app.evaluations.schemas import (
    Choice,
    ComparisonOut,
    EvaluationOut,
    ExampleFilter,
    ExamplesOut,
)
from app.metrics.tables import figures_table, to_csv
from app.projects.api import ProjectDep
from app.security.permissions import Permission
from app.web.deps import SessionDep, SettingsDep, require

router = APIRouter(prefix="/api/v1/projects/{project}", tags=["evaluations"])
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


def csv_answer(text: str, filename: str) -> Response:
    """Return a CSV download; the mark tells spreadsheets that it is UTF-8."""
    disposition = f'attachment; filename="{filename}"'
    return Response(
        "\ufeff" + text,
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": disposition},
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
    if format not in (None, "json", "csv"):
        raise InvalidInput(f"There is no format “{format}”: take json or csv.")
    found = compare_chosen(session, project, choice)
    accepted = request.headers.get("accept", "")
    if format == "csv" or (format is None and accepted.startswith("text/csv")):
        return csv_answer(to_csv(figures_table(found)), f"{project.slug}-comparison.csv")
    return JSONResponse(found.as_json())


@router.get("/evaluations", dependencies=READ)
def list_evaluations(
    project: ProjectDep,
    session: SessionDep,
    state: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EvaluationOut]:
    """Return evaluations, newest first."""
    return queries.listed(session, project.id, state=state, limit=limit)


@router.get("/evaluations/{evaluation_id}", dependencies=READ)
def show_evaluation(project: ProjectDep, evaluation_id: int, session: SessionDep) -> EvaluationOut:
    found = service.get(session, project.id, evaluation_id)
    return queries.listed(session, project.id, ids=[found.id])[0]


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
