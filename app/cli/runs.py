"""`stillhouse runs`: start, follow, list, show, cancel and compare runs."""

from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
import yaml

from app.cli import lookup
from app.cli.comparison import print_comparison
from app.cli.connect import connected
from app.cli.options import AnyProject, Home, Project, Wait
from app.cli.output import Json, WrongUse, console, print_json, print_table
from app.cli.progress import follow_run
from app.metrics.formatting import DASH, duration, number

app = typer.Typer(no_args_is_help=True, help="Start, list, show, cancel and compare runs.")
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's number or name.")]


def read_spec(path: Path) -> dict[str, Any]:
    """Return the run a YAML (or JSON) file describes. Raises WrongUse."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongUse(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(found, dict):
        raise WrongUse(f"{path} describes no run: it must be a mapping with a name.")
    return found


@app.command()
def start(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What is trained on what.")],
    project: Project,
    home: Home = None,
    *,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Start a run: teacher, student and dataset by name, the rest as the run form has it.

    Where a setting lists values (`seed: [0, 1, 2]`), every combination is a run.
    """
    with connected(home) as api:
        body = read_spec(spec)
        slug = lookup.project_slug(api, project)
        runs = api.post_once(f"/projects/{slug}/runs/group", body, key=uuid4().hex)
        if wait:
            runs = [follow_run(api, slug, run["number"], quiet=as_json) for run in runs]
    if as_json:
        print_json(runs[0] if len(runs) == 1 else runs)
        return
    for run in runs:
        console.print(f"#{run['number']} {run['name']} is {run['state']}.", markup=False)


@app.command("list")
def list_(
    project: AnyProject = None,
    group: Annotated[str | None, typer.Option(help="Only runs of this group.")] = None,
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """List runs, the newest first; works while nothing is served."""
    wanted = {"group": group, "state": state, "limit": limit}
    with connected(home, reading=True) as api:
        slug = lookup.project_slug(api, project)
        given = {key: value for key, value in wanted.items() if value is not None}
        found = api.get(f"/projects/{slug}/runs", given)
    if as_json:
        print_json(found)
        return
    headers = ("Run", "Name", "Role", "Group", "State", "Progress", "Time")
    rows = [
        (
            f"#{run['number']}",
            run["name"],
            run["role"].replace("_", " "),
            run["group"] or DASH,
            run["state"],
            _progress(run),
            _seconds(run["seconds"]),
        )
        for run in found
    ]
    print_table(headers, rows, empty="No run yet: `stillhouse runs start` starts one.")


@app.command()
def show(run: Run, project: AnyProject = None, home: Home = None, *, as_json: Json = False) -> None:
    """Show a run and its jobs; works while nothing is served."""
    with connected(home, reading=True) as api:
        slug = lookup.project_slug(api, project)
        found = api.get(f"/projects/{slug}/runs/{lookup.run_number(api, slug, run)}")
    if as_json:
        print_json(found)
        return
    title = f"#{found['number']} {found['name']}"
    role = found["role"].replace("_", " ")
    console.print(f"{title}: {role}, {found['state']}", markup=False, highlight=False)
    if found["message"]:
        console.print(found["message"], markup=False, highlight=False, style="red")
    for words in (found["ended"], found["kept"] and f"Its checkpoint is {found['kept']}."):
        if words:
            console.print(words, markup=False, highlight=False)
    rows = [
        (str(job["job_id"]), job["role"], job["state"], _progress(job), job["message"] or "")
        for job in found["jobs"]
    ]
    print_table(("Job", "Phase", "State", "Progress", ""), rows, empty="It has no job.")


@app.command()
def cancel(
    run: Run,
    project: AnyProject = None,
    mode: Annotated[str, typer.Option(help="keep what it has learned, or discard it.")] = "keep",
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """Stop a run after the step in hand."""
    with connected(home) as api:
        slug = lookup.project_slug(api, project)
        number_ = lookup.run_number(api, slug, run)
        found = api.post(f"/projects/{slug}/runs/{number_}/cancel", {"mode": mode})
    if as_json:
        print_json(found)
        return
    console.print(f"#{found['number']} {found['name']} is {found['state']}.", markup=False)


@app.command()
def compare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs to compare; else the last finished group.")
    ] = None,
    project: AnyProject = None,
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """Compare runs with teacher and undistilled student; works while nothing is served."""
    with connected(home, reading=True) as api:
        anywhere = project is None and not names
        slug = lookup.last_compared(api) if anywhere else lookup.project_slug(api, project)
        found = api.get(f"/projects/{slug}/comparison", {"run": names or []})
    if as_json:
        print_json(found)
    else:
        print_comparison(found)


def _progress(found: dict[str, Any]) -> str:
    values = found["progress"]
    if not values or not values.get("total"):
        return found["phase"] or DASH
    return f"{number(values['done'])} of {number(values['total'])} {values['unit']}"


def _seconds(value: float | None) -> str:
    return DASH if value is None else duration(value)
