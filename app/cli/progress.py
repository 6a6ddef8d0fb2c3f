"""Live progress on stderr: uploads, jobs and runs; quiet for scripts."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from app.cli.output import CommandFailed, errors
from app.client.rest import Api
from app.client.uploads import upload_file
from app.client.waiting import wait_for_job, wait_for_run
from app.metrics.formatting import duration, number

JobValues = Mapping[str, Any]


class DoneColumn(ProgressColumn):
    """`12 of 150 steps`, or nothing while the phase counts nothing."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        unit = task.fields.get("unit", "")
        return Text(f"{number(task.completed)} of {number(task.total)} {unit}".rstrip())


class EtaColumn(ProgressColumn):
    """The time left as the job itself says it."""

    def render(self, task: Task) -> Text:
        eta = task.fields.get("eta")
        return Text("" if eta is None else f"about {duration(eta)} left")


@contextmanager
def bars(*, quiet: bool) -> Iterator[Progress]:
    """Yield bars for jobs and runs."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DoneColumn(),
        EtaColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=errors, disable=quiet or not errors.is_terminal, transient=True
    ) as progress:
        yield progress


def send_file(api: Api, project: str, path: Path, *, quiet: bool) -> dict[str, Any]:
    """Upload a file under a bar of bytes; return its upload."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=errors, disable=quiet or not errors.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(f"Sending {path.name}", total=path.stat().st_size)
        return upload_file(
            api, project, path, lambda done, _total: progress.update(task, completed=done)
        )


def follow_job(api: Api, job_id: int, *, quiet: bool) -> dict[str, Any]:
    """Wait for a job under a bar and return it. Raises CommandFailed with the job's sentence."""
    with bars(quiet=quiet) as progress:
        task = progress.add_task("Waiting", total=None)
        job = wait_for_job(api, job_id, lambda found: show(progress, task, found, found["title"]))
    return succeeded(job, job["title"], f"job {job_id}")


def follow_run(api: Api, project: str, number_: int, *, quiet: bool) -> dict[str, Any]:
    """Wait for a run under a bar and return it. Raises CommandFailed with the run's sentence."""
    with bars(quiet=quiet) as progress:
        task = progress.add_task("Waiting", total=None)
        run = wait_for_run(
            api,
            project,
            number_,
            lambda found: show(progress, task, found, f"#{number_} {found['name']}"),
        )
    return succeeded(run, f"#{number_} {run['name']}", f"stillhouse runs show {number_}")


def show(progress: Progress, task: Any, found: JobValues, title: str) -> None:
    """Put a job's or run's state on its bar."""
    values = found.get("progress") or {}
    phase = found.get("phase") or found["state"]
    progress.update(
        task,
        description=f"{title}: {phase.replace('_', ' ')}",
        completed=values.get("done", 0),
        total=values.get("total"),
        unit=values.get("unit", ""),
        eta=values.get("eta_seconds"),
    )


def succeeded(found: dict[str, Any], title: str, where: str) -> dict[str, Any]:
    """Return what has ended well. Raises CommandFailed."""
    if found["state"] == "succeeded":
        return found
    reason = found.get("message") or "It says no more."
    raise CommandFailed(f"“{title}” {found['state']}: {reason} See {where}.")
