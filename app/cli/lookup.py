"""Find what people name: projects, checkpoints, dataset versions."""

import re
from collections.abc import Iterable
from typing import Any

from app.cli.output import WrongUse
from app.client.rest import Api

SLUG = re.compile(r"[a-z0-9-]+")
Row = dict[str, Any]


def project_slug(api: Api, name: str) -> str:
    """Return the slug of a project given by slug or name. Raises WrongUse."""
    found: list[Row] = api.get("/projects", {"search": name}) if not SLUG.fullmatch(name) else []
    if not found:
        return name if SLUG.fullmatch(name) else _none(f"There is no project “{name}”.")
    same = [row for row in found if row["name"] == name]
    if len(same) > 1:
        slugs = ", ".join(row["slug"] for row in same)
        raise WrongUse(f"Several projects are called “{name}”: name one by its slug ({slugs}).")
    return str(same[0]["slug"]) if same else _none(f"There is no project “{name}”.")


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


def version(api: Api, project: str, name: str, *, state: str | None = None) -> Row:
    """Return the newest version of `NAME`, or the one of `NAME@NUMBER`. Raises WrongUse."""
    dataset, _, number = name.partition("@")
    rows: list[Row] = api.get(f"/projects/{project}/versions")
    of_dataset = [row for row in rows if row["dataset_name"] == dataset]
    if not of_dataset:
        known = sorted({row["dataset_name"] for row in rows})
        raise WrongUse(f"The project has no dataset “{dataset}”. It has {_list(known)}.")
    for row in sorted(of_dataset, key=lambda row: -row["number"]):
        if (not number or str(row["number"]) == number) and state in (None, row["state"]):
            return row
    words = f" that is {state}" if state else ""
    raise WrongUse(f"“{dataset}” has no version {number}{words}.".replace("  ", " "))


def _names(rows: Iterable[Row]) -> str:
    return _list([row["name"] for row in rows])


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _none(sentence: str) -> str:
    raise WrongUse(sentence)
