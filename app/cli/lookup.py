"""Find what people name: projects, runs, checkpoints, dataset versions."""

import re
from collections.abc import Iterable
from typing import Any

from app.cli.output import WrongUse
from app.client.rest import Api

SLUG = re.compile(r"[a-z0-9-]+")
NUMBER = re.compile(r"#?[0-9]{1,9}")
Row = dict[str, Any]


def project_slug(api: Api, name: str | None) -> str:
    """Return the slug of a project given by slug or name; None: the only one. Raises WrongUse."""
    if name is None:
        return _only_project(api.get("/projects"))
    found: list[Row] = api.get("/projects", {"search": name}) if not SLUG.fullmatch(name) else []
    if not found:
        return name if SLUG.fullmatch(name) else _none(f"There is no project “{name}”.")
    same = [row for row in found if row["name"] == name]
    if len(same) > 1:
        slugs = ", ".join(row["slug"] for row in same)
        raise WrongUse(f"Several projects are called “{name}”: name one by its slug ({slugs}).")
    return str(same[0]["slug"]) if same else _none(f"There is no project “{name}”.")


def _only_project(rows: list[Row]) -> str:
    if not rows:
        raise WrongUse("There is no project yet: `stillhouse projects create` makes one.")
    if len(rows) > 1:
        slugs = _list([row["slug"] for row in rows])
        raise WrongUse(f"There are several projects: choose one with --project ({slugs}).")
    return str(rows[0]["slug"])


def last_compared(api: Api) -> str:
    """Return the slug of the project whose run finished last. Raises WrongUse."""
    rows: list[Row] = api.get("/projects")
    finished: list[tuple[str, str]] = []
    for row in rows:
        newest = api.get(f"/projects/{row['slug']}/runs", {"state": "succeeded", "limit": 1})
        finished += [(run["ended_at"], row["slug"]) for run in newest if run["ended_at"]]
    return max(finished)[1] if finished else _only_project(rows)


def run_number(api: Api, project: str, name: str) -> int:
    """Return the number of a run given by number, #number or name. Raises WrongUse."""
    if NUMBER.fullmatch(name):
        return int(name.removeprefix("#"))
    rows: list[Row] = api.get(f"/projects/{project}/runs", {"limit": 1000})
    numbers = [row["number"] for row in rows if row["name"] == name]
    if len(numbers) == 1:
        return int(numbers[0])
    if not numbers:
        raise WrongUse(f"The project has no run “{name}”. It has {_names(rows[:20])}.")
    listed = _list([f"#{number}" for number in sorted(numbers)])
    raise WrongUse(f"Several runs are called “{name}”: name one by its number ({listed}).")


def checkpoint(api: Api, project: str, name: str) -> Row:
    """Return the checkpoint of a name or id. Raises WrongUse."""
    rows: list[Row] = api.get(f"/projects/{project}/checkpoints")
    for row in rows:
        if row["name"] == name:
            return row
    for row in rows:
        if str(row["id"]) == name:
            return row
    raise WrongUse(f"The project has no checkpoint “{name}”. It has {_names(rows)}.")


def version(api: Api, project: str, name: str, *, states: tuple[str, ...] = ()) -> Row:
    """Return the newest version of `NAME`, or the one of `NAME@NUMBER`. Raises WrongUse.

    With `states`, the newest that is in the first of them, else in the next.
    """
    dataset, _, number = name.partition("@")
    rows: list[Row] = api.get(f"/projects/{project}/versions")
    of_dataset = [row for row in rows if row["dataset_name"] == dataset]
    if not of_dataset:
        known = sorted({row["dataset_name"] for row in rows})
        raise WrongUse(f"The project has no dataset “{dataset}”. It has {_list(known)}.")
    fit = [row for row in of_dataset if not number or str(row["number"]) == number]
    newest = sorted(fit, key=lambda row: -row["number"])
    for wanted in states or (None,):
        for row in newest:
            if wanted in (None, row["state"]):
                return row
    words = f" that is {' or '.join(states)}" if states else ""
    raise WrongUse(f"“{dataset}” has no version {number}{words}.".replace("  ", " "))


def _names(rows: Iterable[Row]) -> str:
    return _list([row["name"] for row in rows])


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _none(sentence: str) -> str:
    raise WrongUse(sentence)
