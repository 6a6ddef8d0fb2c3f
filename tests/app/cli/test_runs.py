"""Runs on the command line: start by names, wait, list, show, cancel, compare."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.client import waiting
from app.jobs.models import Job
from app.runs.models import RunJob
from app.specs.jobs import JobState
from app.web.deps import Services
from tests.app.cli.conftest import Run
from tests.support import made_rows
from tests.support.made_evaluations import World

RunJson = Callable[..., Any]
AT = ("--project", "support-router")
SPEC = """\
name: kd
teacher: teacher
student: student
dataset: traffic
group: g1
training:
  objective: {kind: forward_kl, alpha: 0.7}
"""


@pytest.fixture
def world(parts: Services, tmp_path: Path) -> Iterator[World]:
    with parts.sessions() as session:
        yield World.make(session, parts.settings, tmp_path)


@pytest.fixture
def spec(world: World, tmp_path: Path) -> Path:
    world.session.commit()
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def end_jobs(parts: Services, state: JobState, message: str | None) -> None:
    """Let the first job of run 1 fail, or all its jobs succeed in their order."""
    with parts.sessions.begin() as session:
        of_run = select(Job).join(RunJob, RunJob.job_id == Job.id).order_by(Job.id)
        jobs = session.scalars(of_run).all()
        for job in jobs[:1] if state == JobState.FAILED else jobs:
            made_rows.bring_to(session, job.id, state, message=message)


def test_a_run_is_started_listed_shown_and_cancelled(
    run: Run, run_json: RunJson, spec: Path
) -> None:
    assert "#1 kd is queued" in run("runs", "start", spec, *AT).stdout
    assert [(r["number"], r["name"]) for r in run_json("runs", "list", *AT)] == [(1, "kd")]
    assert run_json("runs", "list", *AT, "--group", "other") == []
    assert "No run yet" in run("runs", "list", *AT, "--state", "failed").stdout
    listed = run("runs", "list", *AT).stdout
    assert "distilled" in listed
    assert "queued" in listed
    shown = run("runs", "show", 1, *AT).stdout
    assert [word for word in ("precompute", "train", "evaluate") if word in shown] == [
        "precompute",
        "train",
        "evaluate",
    ]
    assert run_json("runs", "show", 1, *AT)["jobs"][0]["state"] == "queued"
    assert run_json("runs", "cancel", 1, *AT)["state"] == "cancelled"
    assert "already ended" in run("runs", "cancel", 1, *AT, exit_code=1).stderr
    assert "'succeeded'" in run("runs", "list", *AT, "--state", "done", exit_code=2).stderr
    assert "no run #9" in run("runs", "show", 9, *AT, exit_code=2).stderr


def test_lists_of_values_start_every_combination(run: Run, run_json: RunJson, spec: Path) -> None:
    spec.write_text(SPEC + "  seed: [0, 1]\n")
    assert [r["name"] for r in run_json("runs", "start", spec, *AT)] == ["kd, seed 0", "kd, seed 1"]
    spec.write_text(SPEC + "  seed: [0, -1]\n")
    refused = run("runs", "start", spec, *AT, exit_code=2).stderr
    assert refused.startswith("training.seed: ")


def test_a_run_is_named_by_number_or_name_and_a_lone_project_need_not_be(
    run: Run, run_json: RunJson, spec: Path
) -> None:
    run("runs", "start", spec, *AT)
    assert [run_json("runs", "show", name)["name"] for name in ("1", "#1", "kd")] == ["kd"] * 3
    assert "no run “none”. It has kd" in run("runs", "show", "none", exit_code=2).stderr
    spec.write_text(SPEC.replace("group: g1", "group: g2"))
    run("runs", "start", spec, *AT)
    assert "#1, #2" in run("runs", "cancel", "kd", exit_code=2).stderr
    assert run_json("runs", "cancel", "#2")["number"] == 2
    run("projects", "create", "Another")
    several = run("runs", "list", exit_code=2).stderr
    assert "choose one with --project (" in several
    assert "another" in several


def test_comparing_without_a_name_takes_the_project_whose_run_finished_last(
    run: Run, run_json: RunJson, world: World
) -> None:
    run("projects", "create", "Another")
    kd = world.start("kd")
    world.anchors()
    world.finish(kd, 95)
    world.session.commit()
    assert [row["name"] for row in run_json("runs", "compare")["rows"]][-1] == "kd"


def test_comparing_seeds_says_what_is_true_of_the_recipe(
    run: Run, run_json: RunJson, world: World
) -> None:
    for seed in range(3):
        kd = world.start(f"kd, seed {seed}", seed=seed)
        world.anchors()
        world.finish(kd, 93 + seed)
    world.session.commit()
    found = run_json("runs", "compare", *AT)["recipes"]
    assert [row["name"] for row in found["rows"]] == ["teacher", "undistilled", "kd (3 seeds)"]
    assert found["rows"][-1]["cells"]["exact_match"]["value"] == pytest.approx(0.94)
    told = run("runs", "compare", *AT).stdout
    assert "Over seeds" in told
    assert "The verdict is about this recipe, over 3 seeds" in " ".join(told.split())


def test_a_spec_that_cannot_work_is_refused_by_its_field(
    run: Run, spec: Path, tmp_path: Path
) -> None:
    spec.write_text(SPEC.replace("teacher: teacher", "teacher: nobody"))
    assert "It has: teacher, student" in run("runs", "start", spec, *AT, exit_code=2).stderr
    spec.write_text(SPEC + "colour: red\n")
    assert "colour" in run("runs", "start", spec, *AT, exit_code=2).stderr
    spec.write_text("- a list\n")
    assert "describes no run" in run("runs", "start", spec, *AT, exit_code=2).stderr
    spec.write_text("a: [")
    assert "is not YAML" in run("runs", "start", spec, *AT, exit_code=2).stderr
    missing = run("runs", "start", tmp_path / "none.yaml", *AT, exit_code=2)
    assert "cannot be read" in missing.stderr


@pytest.mark.parametrize(("state", "exit_code"), [(JobState.SUCCEEDED, 0), (JobState.FAILED, 1)])
def test_waiting_ends_with_the_run(
    run: Run,
    spec: Path,
    parts: Services,
    monkeypatch: pytest.MonkeyPatch,
    state: JobState,
    exit_code: int,
) -> None:
    message = "The disk is full. Free space, then retry." if exit_code else None
    pauses: list[float] = []

    def work_instead_of_waiting(seconds: float) -> None:
        pauses.append(seconds)
        assert len(pauses) < 5, "it never ends"
        if len(pauses) == 1:
            end_jobs(parts, state, message)

    monkeypatch.setattr(waiting, "sleep", work_instead_of_waiting)
    ended = run("runs", "start", spec, *AT, "--wait", exit_code=exit_code)
    if exit_code:
        assert "The disk is full" in ended.stderr
        assert "runs show 1" in ended.stderr
    else:
        assert "#1 kd is succeeded" in ended.stdout


def test_comparing_prints_rows_intervals_and_verdicts(
    run: Run, run_json: RunJson, world: World
) -> None:
    kd, labels = world.start("kd"), world.start("labels", 0.0, target="reference")
    world.session.commit()
    assert "nothing" in run("runs", "compare", *AT, exit_code=2).stderr.lower()
    world.anchors()
    world.finish(kd, 95)
    world.finish(labels, 60)
    world.session.commit()
    found = run_json("runs", "compare", *AT)
    assert {"deciding_metric", "rows", "differences"} <= set(found)
    assert [row["role"] for row in found["rows"]] == [
        "teacher",
        "undistilled",
        "distilled",
        "labels_only",
    ]
    assert set(found["rows"][0]["cells"]["exact_match"]) == {"value", "low", "high", "n"}
    assert set(found["differences"][0]) == {
        "a",
        "b",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "verdict",
        "reason",
    }
    shown = run("runs", "compare", *AT).stdout
    assert "kd − labels" in shown
    assert " ".join(found["sentence"].split()) in " ".join(shown.split())
    alone = run_json("runs", "compare", "kd", *AT)
    assert [row["name"] for row in alone["rows"] if row["role"] == "distilled"] == ["kd"]
    assert not [row for row in alone["rows"] if row["role"] == "labels_only"]
