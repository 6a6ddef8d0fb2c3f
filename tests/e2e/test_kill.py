"""kill -9 of a worker in the middle of a training, on a served home, seen in the browser."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from app.client.rest import Api
from app.client.uploads import upload_file
from app.client.waiting import is_over, wait_for_job, wait_for_run
from app.local.home import SERVED, HomeLock
from app.local.programs import ROOT
from app.local.urls import address_of
from app.local.valkey import free_port
from app.settings import Settings
from tests.support.browser import WIDE, Complaints, chromium, ensure_assets
from tests.support.traffic import REFERENCE_PATH, write_log
from tests.workers.distill import tiny
from workers.distill.checkpoints import save_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PATIENCE = 90
STEPS, SNAPSHOT_EVERY = 200, 20
Row = dict[str, Any]


class Home:
    """`stillhouse up` on a home of its own, as a person starts it; leases run out soon."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(home=folder, port=free_port())
        soon = {"LEASE_SECONDS": "8", "HEARTBEAT_SECONDS": "0.5", "REAP_SECONDS": "0.5"}
        kept = {
            name: value
            for name, value in os.environ.items()  # noqa: TID251 - a child inherits PATH and friends
            if not name.startswith("STILLHOUSE_") and name not in ("DATABASE_URL", "REDIS_URL")
        }
        variables = kept | {f"STILLHOUSE_{name}": value for name, value in soon.items()}
        variables["STILLHOUSE_BACKOFF_SECONDS"] = "[0]"
        command = [sys.executable, "-m", "app.cli", "up", "--home", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.settings.port)],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.DEVNULL,
        )

    def until_it_answers(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            if HomeLock.held_for(self.settings.home) == SERVED:
                try:
                    if httpx.get(f"{address_of(self.settings)}/readyz").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
            time.sleep(0.2)
        pytest.fail("it never answered")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.settings.token_file.read_text().strip()}"}

    def gpu_worker(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "gpu" in child.cmdline())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    ensure_assets()
    home = Home(tmp_path_factory.mktemp("h"))
    try:
        home.until_it_answers()
        yield home
    finally:
        home.stop()


@pytest.fixture
def api(home: Home) -> Iterator[Api]:
    with httpx.Client(base_url=address_of(home.settings), headers=home.headers) as http:
        yield Api(http)


def finish(api: Api, made: Row) -> Row:
    job = wait_for_job(api, made["job_id"], lambda _: None)
    assert job["state"] == "succeeded", job
    return made


def prepare(api: Api, folder: Path) -> None:
    """Make a project with teacher, student and frozen dataset."""
    log, teacher = folder / "traffic.jsonl", folder / "teacher"
    write_log(log, 40)
    save_checkpoint(tiny.llama(layers=2), tiny.tokenizer(), teacher)
    api.post("/projects", {"name": "Kill"})
    at = "/projects/kill"
    source = {"kind": "folder", "path": str(teacher)}
    made = finish(api, api.post(f"{at}/checkpoints", {"name": "teacher", "source": source}))
    cut = {"name": "student", "teacher_id": made["id"], "prune": {"depth": 1}}
    upload = upload_file(api, "kill", log)
    wanted = {
        "dataset": "traffic",
        "upload_ids": [upload["id"]],
        "reference_path": REFERENCE_PATH,
    }
    version = finish(api, api.post(f"{at}/imports", wanted))
    finish(api, api.post(f"{at}/versions/{version['id']}/freeze"))
    finish(api, api.post(f"{at}/checkpoints/students", cut))


def start(api: Api, name: str) -> Row:
    schedule = {"steps": STEPS, "batch_size": 4, "snapshot_every": SNAPSHOT_EVERY}
    made: Row = api.post(
        "/projects/kill/runs",
        {
            "name": name,
            "teacher": "teacher",
            "student": "student",
            "dataset": "traffic",
            "training": {
                "objective": {"kind": "forward_kl", "alpha": 0.7},
                "schedule": schedule | {"validate_every": SNAPSHOT_EVERY},
                "render": {"max_tokens": 256},
                "seed": 5,
            },
            "evaluation": {"max_new_tokens": 4},
        },
    )
    return made


def train_job(run: Row) -> Row:
    return next(job for job in run["jobs"] if job["role"] == "train")


def until_step(api: Api, number: int, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        run = api.get(f"/projects/kill/runs/{number}")
        progress = train_job(run)["progress"]
        if progress and progress["unit"] == "steps" and progress["done"] >= step:
            return
        assert not is_over(run["state"]), run
        time.sleep(0.1)
    pytest.fail(f"it never came to step {step}")


def test_a_killed_worker_is_started_again_and_the_curve_is_that_of_an_undisturbed_run(
    home: Home, api: Api, tmp_path: Path
) -> None:
    prepare(api, tmp_path)
    undisturbed, killed = start(api, "undisturbed"), start(api, "killed")
    with chromium() as browser:
        context = browser.new_context(viewport=WIDE, extra_http_headers=home.headers)
        page = context.new_page()
        complaints = Complaints(page)
        page.goto(f"{address_of(home.settings)}/projects/kill/runs/{killed['number']}")
        until_step(api, killed["number"], SNAPSHOT_EVERY * 2)
        worker = home.gpu_worker()
        worker.kill()
        worker.wait(PATIENCE)

        # No reload: the page follows the loss of the worker and the second attempt to the end.
        attempts = page.get_by_role("region", name="Attempts").first
        expect(attempts).to_contain_text("lost", timeout=PATIENCE * 1000)
        expect(page.locator("main .ph")).to_contain_text("attempt 2", timeout=PATIENCE * 1000)
        expect(page.locator("main .ph")).to_contain_text("succeeded", timeout=PATIENCE * 1000)
        chart = page.locator("[data-chart]").first
        chart.locator("[data-chart-twin]").click()
        steps = chart.locator("[data-twin] tbody th").all_inner_texts()
        words = attempts.inner_text()
        assert not complaints.found, complaints.found
        context.close()
    assert steps[0] == str(STEPS)
    assert len(steps) == len(set(steps))

    first, second = (
        wait_for_run(api, "kill", run["number"], lambda _: None) for run in (undisturbed, killed)
    )
    assert (first["state"], second["state"]) == ("succeeded", "succeeded")
    assert (train_job(first)["attempt"], train_job(second)["attempt"]) == (1, 2), words
    curves = [api.get(f"/projects/kill/runs/{run['number']}/series") for run in (first, second)]
    for name in ("train/loss", "validation/loss"):
        one, two = (curve[name] for curve in curves)
        assert one == two
        assert len(one) >= STEPS // SNAPSHOT_EVERY
