"""`stillhouse projects`: make and list projects."""

from typing import Annotated, get_args

import typer

from app.cli.connect import connected
from app.cli.options import Home
from app.cli.output import Json, WrongUse, console, print_json, print_table
from app.metrics.registry import METRICS
from app.metrics.verdicts import tolerance_words
from app.projects.schemas import Goal

app = typer.Typer(no_args_is_help=True, help="Make and list projects.")


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
