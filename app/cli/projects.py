"""`stillhouse projects`: make, list, show and change projects."""

from typing import Annotated, Any, get_args

import typer

from app.cli import lookup
from app.cli.connect import connected
from app.cli.options import Home
from app.cli.output import Json, WrongUse, console, print_json, print_table
from app.metrics.formatting import DASH
from app.metrics.registry import METRICS
from app.metrics.verdicts import tolerance_words
from app.projects.schemas import Goal

Name = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's slug or name.")]
EDITED = (
    "goal",
    "description",
    "deciding_metric",
    "tolerance",
    "teacher_id",
    "student_id",
    "version",
)
app = typer.Typer(no_args_is_help=True, help="Make, list, show and change projects.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    goal: Annotated[str, typer.Option(help="One of " + ", ".join(get_args(Goal)) + ".")] = (
        "task_specialisation"
    ),
    metric: Annotated[str, typer.Option(help="The metric that decides.")] = "exact_match",
    tolerance: Annotated[
        float, typer.Option(help="How far the student may stay behind, in points.")
    ] = 2.0,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """Make a project and print its slug, by which other commands name it."""
    body = {
        "name": name,
        "goal": goal,
        "deciding_metric": metric,
        "tolerance": tolerance,
        "description": description,
    }
    with connected(home) as api:
        if goal not in get_args(Goal):
            raise WrongUse(f"--goal {goal} is none of {', '.join(get_args(Goal))}.")
        made = api.post("/projects", body)
    if as_json:
        print_json(made)
    else:
        console.print(made["slug"], highlight=False)


@app.command("list")
def list_(home: Home = None, *, as_json: Json = False) -> None:
    """List projects, the newest first."""
    with connected(home, reading=True) as api:
        found = api.get("/projects")
    if as_json:
        print_json(found)
        return
    rows = [
        (
            p["slug"],
            p["name"],
            p["goal"].replace("_", " "),
            METRICS[p["deciding_metric"]].label,
            tolerance_words(p["deciding_metric"], p["tolerance"]),
        )
        for p in found
    ]
    headers = ("Project", "Name", "Goal", "Decided by", "Tolerance")
    print_table(headers, rows, empty="No project yet: make one with `stillhouse projects create`.")


@app.command()
def show(project: Name, home: Home = None, *, as_json: Json = False) -> None:
    """Show a project: goal, teacher, student, what decides; works while nothing is served."""
    with connected(home, reading=True) as api:
        slug = lookup.project_slug(api, project)
        found = api.get(f"/projects/{slug}")
        names = {c["id"]: c["name"] for c in api.get(f"/projects/{slug}/checkpoints")}
    _print(found, names, as_json=as_json)


@app.command("set")
def set_(
    project: Name,
    teacher: Annotated[str | None, typer.Option(help="A checkpoint's name or id.")] = None,
    student: Annotated[str | None, typer.Option(help="A checkpoint's name or id.")] = None,
    metric: Annotated[str | None, typer.Option(help="The metric that decides.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="How far the student may stay behind, in points.")
    ] = None,
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """Name a project's teacher and student, or change what decides; the rest stays."""
    given = {"teacher_id": teacher, "student_id": student}
    changed: dict[str, Any] = {"deciding_metric": metric, "tolerance": tolerance}
    changed = {name: value for name, value in changed.items() if value is not None}
    with connected(home) as api:
        if not changed and teacher is None and student is None:
            raise WrongUse("Name what changes: --teacher, --student, --metric or --tolerance.")
        slug = lookup.project_slug(api, project)
        before = api.get(f"/projects/{slug}")
        _check_unit(before["deciding_metric"], metric, tolerance)
        for field, name in given.items():
            if name is not None:
                changed[field] = lookup.checkpoint(api, slug, name)["id"]
        found = api.put(f"/projects/{slug}", {**{k: before[k] for k in EDITED}, **changed})
        names = {c["id"]: c["name"] for c in api.get(f"/projects/{slug}/checkpoints")}
    _print(found, names, as_json=as_json)


def _check_unit(before: str, metric: str | None, tolerance: float | None) -> None:
    """Raise WrongUse where a kept tolerance would silently mean another unit."""
    if tolerance is not None or metric not in METRICS or metric is None:
        return
    if METRICS[metric].scale != METRICS[before].scale:
        raise WrongUse(
            f"{METRICS[metric].label} has another unit than {METRICS[before].label}: "
            "say how far the student may stay behind with --tolerance."
        )


def _print(found: dict[str, Any], names: dict[int, str], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    metric = found["deciding_metric"]
    rows = [
        ("Project", f"{found['slug']}: {found['name']}"),
        ("Goal", found["goal"].replace("_", " ")),
        ("Teacher", names.get(found["teacher_id"], DASH)),
        ("Student", names.get(found["student_id"], DASH)),
        ("Decided by", METRICS[metric].label),
        ("Tolerance", tolerance_words(metric, found["tolerance"])),
    ]
    for label, words in rows:
        console.print(f"{label:<11}{words}", markup=False, highlight=False)
