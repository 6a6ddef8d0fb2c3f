"""Runs under /api/v1: start by name, read, cancel, try again, estimate, refuse."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.clock import now
from app.events.append import add_points, append
from app.events.follow import Follower
from app.jobs.models import Job, JobAttempt, JobSnapshot
from app.specs.jobs import JobKind, JobState
from app.web.deps import Services, event_reader
from tests.support import made_rows

BASE = "/api/v1/projects/support-router/runs"


@dataclass
class World:
    """A project with everything a run needs, and a program that calls its API."""

    client: TestClient
    parts: Services

    def post(self, path: str = "", **body: Any) -> Any:
        return self.client.post(f"{BASE}{path}", json=body)

    def start(self, name: str = "kd", **body: Any) -> dict[str, Any]:
        answer = self.post(name=name, **{"dataset": "traffic", **body})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"{BASE}/{number}").json()
        return found

    def set_state(self, job_id: int, state: JobState, **fields: Any) -> None:
        with self.parts.sessions.begin() as session:
            made_rows.bring_to(session, job_id, state, **fields)


@pytest.fixture
def world(api_client: TestClient, parts: Services) -> Iterator[World]:
    with parts.sessions.begin() as session:
        project = made_rows.project(session)
        made_rows.teacher_and_student(session, project)
        made_rows.version(session, project, parts.settings)
    return World(api_client, parts)


def jobs_of(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {job["role"]: job for job in run["jobs"]}


def test_a_run_starts_by_names_and_ends_with_its_jobs(world: World) -> None:
    run = world.start(teacher="teacher", student="student", dataset="traffic@1", group="g1")
    assert (run["number"], run["role"], run["group"], run["state"]) == (
        1,
        "distilled",
        "g1",
        "queued",
    )
    assert [job["role"] for job in run["jobs"]] == ["precompute", "train", "evaluate"]
    assert [job["state"] for job in run["jobs"]] == ["queued", "blocked", "blocked"]
    assert run["owner"] == "robot"
    steps = [
        ("precompute", JobState.RUNNING, "running", "precompute"),
        ("precompute", JobState.SUCCEEDED, "queued", "train"),
        ("train", JobState.STARTING, "starting", "train"),
        ("train", JobState.RUNNING, "running", "train"),
        ("train", JobState.SUCCEEDED, "queued", "evaluate"),
        ("evaluate", JobState.RUNNING, "running", "evaluate"),
        ("evaluate", JobState.SUCCEEDED, "succeeded", None),
    ]
    for role, state, shown, phase in steps:
        world.set_state(jobs_of(run)[role]["job_id"], state)
        run = world.get(1)
        assert (run["state"], run["phase"]) == (shown, phase)


def test_what_is_not_named_is_the_projects(world: World) -> None:
    run = world.start(dataset=None, training={"objective": {"kind": "ce", "alpha": 0}})
    assert run["role"] == "sequence_level"
    assert run["teacher_id"] is not None
    assert [job["role"] for job in run["jobs"]] == ["train", "evaluate"]
    alone = world.start(
        "tuned", role="fine_tune", training={"objective": {"kind": "ce", "alpha": 0}}
    )
    assert (alone["role"], alone["teacher_id"]) == ("fine_tune", None)


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"teacher": "nobody"}, "teacher", "It has: teacher, student"),
        ({"dataset": "traffic@7"}, "dataset", "no version 7 of “traffic”"),
        ({"dataset": "other"}, "dataset", "no frozen version of “other”"),
        ({"dataset_version_id": 99, "dataset": None}, "dataset", "no dataset version 99"),
    ],
)
def test_unknown_names_are_refused_by_field(
    world: World, body: dict[str, Any], field: str, words: str
) -> None:
    answer = world.post(**{"name": "kd", "dataset": "traffic", **body})
    assert answer.status_code == 422
    assert words in answer.json()["fields"][field]
    assert world.client.get(BASE).json() == []


def test_runs_started_together_share_one_precompute(world: World) -> None:
    first, second = world.start("a", group="g"), world.start("b", group="g")
    assert jobs_of(first)["precompute"]["job_id"] == jobs_of(second)["precompute"]["job_id"]
    with world.parts.sessions() as session:
        kinds = session.scalars(select(Job.kind).where(Job.kind == JobKind.PRECOMPUTE)).all()
    assert len(kinds) == 1
    # Cancelling one run must not take the cache away from the other.
    answer = world.post("/1/cancel", mode="keep")
    assert answer.status_code == 202
    assert answer.json()["state"] == "cancelled"
    assert world.get(2)["state"] == "queued"
    world.post("/2/cancel", mode="discard")
    assert jobs_of(world.get(2))["precompute"]["state"] == "cancelled"
    other = world.start("c", training={"render": {"max_tokens": 64}})
    assert jobs_of(other)["precompute"]["job_id"] != jobs_of(first)["precompute"]["job_id"]


def test_a_working_run_is_shown_as_cancelling_and_keeps_or_discards(world: World) -> None:
    run = jobs_of(world.start())
    world.set_state(run["precompute"]["job_id"], JobState.SUCCEEDED)
    world.set_state(run["train"]["job_id"], JobState.RUNNING)
    assert world.post("/1/cancel", mode="discard").json()["state"] == "cancelling"
    with world.parts.sessions() as session:
        assert session.get_one(Job, run["train"]["job_id"]).cancel_mode == "discard"
    world.set_state(run["train"]["job_id"], JobState.CANCELLED)
    assert world.get(1)["state"] == "cancelled"
    again = world.post("/1/cancel", mode="keep")
    assert again.status_code == 409
    assert "already ended" in again.json()["message"]


def test_a_failed_run_is_tried_again_from_the_job_that_failed(world: World) -> None:
    run = jobs_of(world.start())
    assert world.post("/1/retry").status_code == 409
    world.set_state(run["precompute"]["job_id"], JobState.SUCCEEDED)
    world.set_state(
        run["train"]["job_id"], JobState.FAILED, error="NonFiniteLossError", message="Step 3: nan."
    )
    failed = world.get(1)
    assert (failed["state"], failed["error"]) == ("failed", "NonFiniteLossError")
    assert jobs_of(failed)["evaluate"]["error"] == "upstream_failed"
    again = world.post("/1/retry").json()
    assert again["state"] == "queued"
    jobs = jobs_of(again)
    assert jobs["precompute"]["job_id"] == run["precompute"]["job_id"]
    assert (jobs["train"]["state"], jobs["evaluate"]["state"]) == ("queued", "blocked")
    assert jobs["train"]["job_id"] > run["evaluate"]["job_id"]
    world.set_state(jobs["train"]["job_id"], JobState.SUCCEEDED)
    world.set_state(jobs["evaluate"]["job_id"], JobState.SUCCEEDED)
    assert world.get(1)["state"] == "succeeded"


def test_runs_are_listed_by_group_and_state(world: World) -> None:
    world.start("a", group="g1")
    world.start("b", group="g2")
    world.post("/1/cancel", mode="keep")
    found = world.client.get(BASE).json()
    assert [run["name"] for run in found] == ["b", "a"]
    assert [r["name"] for r in world.client.get(BASE, params={"group": "g1"}).json()] == ["a"]
    assert [r["name"] for r in world.client.get(BASE, params={"state": "queued"}).json()] == ["b"]
    assert len(world.client.get(BASE, params={"limit": 1}).json()) == 1
    wrong = world.client.get(BASE, params={"state": "runing"})
    assert wrong.status_code == 422
    assert all(state in wrong.json()["fields"]["state"] for state in JobState)


def test_one_run_is_shown_with_its_attempts_and_snapshots(world: World) -> None:
    train = jobs_of(world.start())["train"]["job_id"]
    world.set_state(jobs_of(world.get(1))["precompute"]["job_id"], JobState.SUCCEEDED)
    world.set_state(train, JobState.RUNNING)
    with world.parts.sessions.begin() as session:
        ended = {"ended_at": now(), "outcome": "lost", "signal": 9, "last_step": 40}
        session.add(JobAttempt(fence=7, job_id=train, n=1, worker="w1", host="h", **ended))
        again = {"worker": "w2", "host": "h", "resumed_from_step": 40}
        session.add(JobAttempt(fence=8, job_id=train, n=2, **again))
        for step, value in ((20, 0.9), (40, 0.5)):
            session.add(
                JobSnapshot(
                    job_id=train,
                    fence=7,
                    step=step,
                    folder=f"s{step}",
                    manifest_sha256="0" * 64,
                    best=step == 40,
                    value=value,
                )
            )
    run = world.get(1)
    second, first = run["attempts"]
    assert (first["job_id"], first["phase"], first["n"], first["worker"]) == (
        train,
        "train",
        1,
        "w1",
    )
    assert (first["outcome"], first["signal"], first["last_step"]) == ("lost", 9, 40)
    assert first["why"] == "ended by signal 9; last snapshot at step 40"
    assert first["ended_at"] is not None
    assert (second["outcome"], second["resumed_from_step"], second["ended_at"]) == (None, 40, None)
    assert [(s["step"], s["value"], s["best"]) for s in run["snapshots"]] == [
        (40, 0.5, True),
        (20, 0.9, False),
    ]
    assert "attempts" not in world.client.get(BASE).json()[0]


def test_a_run_is_followed_from_where_it_was_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = jobs_of(world.start())["train"]["job_id"]
    with world.parts.sessions.begin() as session:
        append(session, "run:1", "log", {"text": "before"}, job_id=train)
    seen = world.get(1)["last_event_id"]
    with world.parts.sessions.begin() as session:
        append(session, "run:1", "log", {"text": "after"}, job_id=train)
        append(session, "cache:1", "progress", {"done": 1, "total": 2}, job_id=None)

    # A stream waits for ever: this reader gives what is there and ends.
    async def follow(_self: object, streams: tuple[str, ...], start: int) -> Any:
        for event in event_reader(world.parts.sessions)(streams, start):
            yield event

    monkeypatch.setattr(Follower, "follow", follow)
    answer = world.client.get(f"{BASE}/1/events", params={"after": seen})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line for line in answer.text.splitlines() if line.startswith(("event:", "data:"))]
    assert [line for line in events if line.startswith("event:")] == [
        "event: log",
        "event: progress",
    ]
    assert f'data: {{"job":{train},"text":"after"}}' in events
    assert "before" not in answer.text
    assert world.client.get(f"{BASE}/9/events").status_code == 404


def test_the_list_takes_the_same_queries_however_many_runs(
    world: World, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    world.start("a")
    few = count_queries(lambda: world.client.get(BASE))
    for name in "bcd":
        world.start(name)
    assert count_queries(lambda: world.client.get(BASE)) == few


def test_log_and_series_are_those_of_the_runs_own_jobs(world: World) -> None:
    run = jobs_of(world.start())
    cache, train = run["precompute"]["job_id"], run["train"]["job_id"]
    with world.parts.sessions.begin() as session:
        append(session, "cache:1", "log", {"level": "warning", "text": "2 left out"}, job_id=cache)
        append(session, "run:1", "log", {"level": "info", "text": "step 1"}, job_id=train)
        append(session, "run:1", "log", {"level": "info", "text": "a stranger's"}, job_id=None)
        steps = {n: {"train/kd_loss": 1 / n} for n in range(1, 5001)}
        add_points(session, "run:1", job_id=train, fence=1, steps=steps)
    lines = world.client.get(f"{BASE}/1/log").json()["lines"]
    assert [line["text"] for line in lines] == ["2 left out", "step 1"]
    curve = world.client.get(f"{BASE}/1/series").json()["train/kd_loss"]
    assert len(curve) <= 2000
    assert (curve[0], curve[-1]) == ([1, 1.0], [5000, 1 / 5000])


def test_a_run_that_cannot_work_is_refused_with_the_reason(world: World) -> None:
    body = {"training": {"objective": {"temperature": 3}}}
    known = world.post("/estimate", name="kd", dataset="traffic", **body).json()
    assert "Temperature 3 is not in the cache's grid (1, 2, 4)" in known["blocked"]
    reason = known["reasons"][0]
    assert reason["field"] == "temperature"
    assert reason["mends"][0]["values"] == {"temperature": "1"}
    answer = world.post(name="kd", dataset="traffic", **body)
    assert answer.status_code == 409
    assert answer.json()["message"] == known["blocked"]
    assert world.client.get(BASE).json() == []
