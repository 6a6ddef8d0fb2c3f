"""Follow a job or a run until it ends."""

from collections.abc import Callable, Mapping
from time import sleep
from typing import Any

from app.client.rest import Api
from app.specs.jobs import JobState

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
OnChange = Callable[[Mapping[str, Any]], None]


def is_over(state: str) -> bool:
    return JobState(state).terminal


def wait_for_job(api: Api, job_id: int, on_change: OnChange) -> dict[str, Any]:
    """Return the job (as GET /jobs/{id} gives it) once it has ended, however it did."""
    return _wait(api, f"/jobs/{job_id}", on_change)


def wait_for_run(api: Api, project: str, number: int, on_change: OnChange) -> dict[str, Any]:
    """Return the run (as GET …/runs/{number} gives it) once it has ended, however it did."""
    return _wait(api, f"/projects/{project}/runs/{number}", on_change)


def _wait(api: Api, path: str, on_change: OnChange) -> dict[str, Any]:
    pause = FIRST_PAUSE
    while True:
        found: dict[str, Any] = api.get(path)
        on_change(found)
        if is_over(found["state"]):
            return found
        sleep(pause)
        pause = min(LONGEST_PAUSE, pause * 1.5)
