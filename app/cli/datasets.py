"""`stillhouse import` and `stillhouse datasets`: logs in, frozen versions out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import lookup
from app.cli.connect import connected
from app.cli.options import Home, Project, Wait
from app.cli.output import (
    CommandFailed,
    Json,
    WrongUse,
    console,
    errors,
    print_json,
    print_table,
)
from app.cli.progress import follow_job, send_file
from app.client.uploads import UploadDamaged
from app.client.waiting import wait_for_job
from app.metrics.formatting import DASH, number

app = typer.Typer(no_args_is_help=True, help="Freeze and list dataset versions.")
FUNNEL = (
    "format",
    "records",
    "calls",
    "duplicates",
    "joined",
    "skipped",
    "quarantined",
    "folded",
    "conversations",
    "targets",
)
"""What `import --json` prints, in this order."""


def import_files(  # noqa: PLR0913 - options of one command
    files: Annotated[
        list[Path], typer.Argument(help="Logs: JSONL, JSON, CSV; plain or compressed.")
    ],
    project: Project,
    dataset: Annotated[str, typer.Option("--dataset", help="Which dataset gets a new version.")],
    log_format: Annotated[
        str, typer.Option("--format", help="auto, or the name of a format.")
    ] = "auto",
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Where a record keeps its ground truth: a.b.c or column."),
    ] = None,
    validation: Annotated[float, typer.Option(help="Share of conversations held out.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of conversations for the test.")] = 0.2,
    home: Home = None,
    *,
    as_json: Json = False,
) -> None:
    """Send logs, import them as a new draft version, and print what became of every record."""
    with connected(home) as api:
        missing = [str(path) for path in files if not path.is_file()]
        if missing:
            raise WrongUse(f"{missing[0]} is not a file.")
        slug = lookup.project_slug(api, project)
        api.get(f"/projects/{slug}")
        try:
            uploads = [send_file(api, slug, path, quiet=as_json) for path in files]
        except UploadDamaged as error:
            raise CommandFailed(str(error)) from error
        ids = [upload["id"] for upload in uploads]
        if log_format != "auto":
            # What looks into a file knows the formats: a wrong one is then refused at once.
            for upload in uploads:
                wait_for_job(api, upload["job_id"], lambda _: None)
        body = {
            "dataset": dataset,
            "upload_ids": ids,
            "format": log_format,
            "reference_path": reference,
            "validation_share": validation,
            "test_share": test,
        }
        version = api.post(f"/projects/{slug}/imports", body)
        follow_job(api, version["job_id"], quiet=as_json)
        version = api.get(f"/projects/{slug}/versions/{version['id']}")
    funnel: dict[str, Any] = version["funnel"]
    for words in (*version["warnings"], *_about_reference(reference, funnel)):
        errors.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json({key: funnel[key] for key in FUNNEL})
        return
    for line in funnel_lines(funnel):
        console.print(line, markup=False, highlight=False)
    name = f"{dataset}@{version['number']}"
    console.print(f"{name} is a draft: look at it, then `stillhouse datasets freeze {dataset}`.")


def _about_reference(reference: str | None, funnel: dict[str, Any]) -> list[str]:
    if not reference or funnel["references"]:
        return []
    words = (
        f"No answer has a reference: nothing was found at “{reference}”. "
        "Name the field as a record spells it, such as metadata.reference, and import again."
    )
    return [words]


def funnel_lines(funnel: dict[str, Any]) -> list[str]:
    """Return the funnel as lines that add up."""
    parts = [("calls", funnel["calls"]), ("duplicates", funnel["duplicates"])]
    parts += [("joined to their call", funnel["joined"])] if funnel["joined"] else []
    parts += [(f"skipped, {_words(why)}", n) for why, n in funnel["skipped"].items()]
    parts += [(f"quarantined, {_words(why)}", n) for why, n in funnel["quarantined"].items()]
    width = len(number(funnel["records"]))
    lines = [f"{number(funnel['records'])} records in the format {funnel['format']}"]
    lines += [f"  {number(count):>{width}} {name}" for name, count in parts]
    lines.append(
        f"{number(funnel['conversations'])} conversations with {number(funnel['targets'])} "
        f"answers to learn from ({number(funnel['folded'])} calls were part of a longer one)"
    )
    for why, count in funnel.get("flagged", {}).items():
        answers = "answer is off as a target" if count == 1 else "answers are off as targets"
        lines.append(f"  {number(count)} {answers}: {_words(why)}")
    if funnel.get("references"):
        count = funnel["references"]
        have = "answer has" if count == 1 else "answers have"
        lines.append(f"  {number(count)} {have} a reference")
    return lines


def _words(reason: str) -> str:
    return reason.replace("_", " ")


@app.command()
def freeze(
    name: Annotated[str, typer.Argument(help="NAME (its newest draft) or NAME@NUMBER.")],
    project: Project,
    home: Home = None,
    *,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Fix a draft version for ever, so that runs can use it; one that is frozen stays as it is."""
    with connected(home) as api:
        slug = lookup.project_slug(api, project)
        states = () if "@" in name else ("draft", "frozen")
        version = lookup.version(api, slug, name, states=states)
        already = version["state"] == "frozen"
        if not already:
            version = api.post(f"/projects/{slug}/versions/{version['id']}/freeze")
        if wait and not already:
            follow_job(api, version["job_id"], quiet=as_json)
            version = api.get(f"/projects/{slug}/versions/{version['id']}")
    if as_json:
        print_json(version)
        return
    words = f"is {version['state']}" if wait else f"is being frozen (job {version['job_id']})"
    words = "is frozen already" if already else words
    label = f"{version['dataset_name']}@{version['number']}"
    console.print(f"{label} {words}.", markup=False, highlight=False)


@app.command("list")
def list_(project: Project, home: Home = None, *, as_json: Json = False) -> None:
    """List the dataset versions of a project, the newest first."""
    with connected(home, reading=True) as api:
        found = api.get(f"/projects/{lookup.project_slug(api, project)}/versions")
    if as_json:
        print_json(found)
        return
    headers = ("Dataset", "State", "Conversations", "Targets", "Frozen")
    rows = []
    for version in found:
        funnel = version["funnel"] or {}
        counts = [number(funnel.get(key)) for key in ("conversations", "targets")]
        frozen = (version["frozen_at"] or DASH)[:16].replace("T", " ")
        rows.append(
            (f"{version['dataset_name']}@{version['number']}", version["state"], *counts, frozen)
        )
    print_table(headers, rows, empty="No dataset yet: `stillhouse import` makes one.")
