"""`stillhouse demo` around its steps: what it prints while and after, its exit codes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.cli import demo
from app.client.rest import Api
from app.demo.setting import DemoSetting
from app.demo.steps import Report, StepFailed
from tests.app.cli.conftest import Run

CELL = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 40}
COMPARISON = {
    "deciding_metric": "exact_match",
    "baseline": "labels only",
    "rows": [{"name": "distilled", "role": "distilled", "cells": {"exact_match": CELL}}],
    "differences": [],
    "sentence": "distilled is better than labels only.",
    "warnings": [],
}


class TwoSteps:
    """Stands for the steps: one that works a while, one that may fail."""

    failure: str | None = None

    def __init__(self, _api: Api, setting: DemoSetting, folder: Path, report: Report) -> None:
        self.setting, self.folder, self.report = setting, folder, report
        self.project = "tickets"

    def carry_out(self) -> dict[str, Any]:
        assert self.folder.name == self.setting.name
        self.report.begin(1, 2, "Make the project")
        progress = {"done": 3, "total": 6, "unit": "steps", "eta_seconds": 4.0}
        self.report.moved({"state": "running", "phase": "train", "progress": progress})
        self.report.moved({"state": "queued", "phase": None, "progress": None})
        self.report.ended("project tickets")
        self.report.begin(2, 2, "Tune")
        if self.failure:
            raise StepFailed(self.failure)
        self.report.ended("run #1 (there already)")
        return COMPARISON


@pytest.fixture
def stood_in(api: Api, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    @contextmanager
    def served(*_: object) -> Iterator[Api]:
        yield api

    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "_served", served)
    monkeypatch.setattr(demo, "Demo", TwoSteps)
    return run


def test_steps_then_table_then_address(stood_in: Run) -> None:
    shown = stood_in("demo", "--quick")
    assert "✓  1/2 Make the project: project tickets" in shown.stderr
    assert "✓  2/2 Tune: run #1 (there already)" in shown.stderr
    assert "distilled is better than labels only." in shown.stdout
    assert "80.0\u00a0…\u00a095.0" in shown.stdout
    assert "/projects/tickets" in shown.stdout
    assert "it checks the path" in shown.stdout
    assert "it checks the path" not in stood_in("demo").stdout


def test_json_is_one_value(stood_in: Run, run_json: Callable[..., Any]) -> None:
    found = run_json("demo")
    assert found["comparison"] == json.loads(json.dumps(COMPARISON))
    assert list(found["seconds"]) == ["Make the project", "Tune"]
    assert found["project"].endswith("/projects/tickets")
    assert not stood_in("demo", "--json").stderr


def test_a_failed_step_says_why_and_where_to_look(
    stood_in: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoSteps, "failure", "“Train #1” failed: The loss is not a number.")
    failed = stood_in("demo", exit_code=1)
    assert "The loss is not a number." in failed.stderr
    assert "/projects/tickets" in failed.stderr
    assert "logs" in failed.stderr
    assert "Tune:" not in failed.stderr
