"""The comparison over REST: which rows, which set, which numbers."""

import csv
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.evaluations.models import EvaluationMetric
from app.jobs.models import Job
from app.metrics.statistics import t_quantile
from app.specs.jobs import JobState
from app.web.deps import Services
from tests.support import made_rows
from tests.support.made_evaluations import World

ADDRESS = "/api/v1/projects/support-router/comparison"


@pytest.fixture
def world(parts: Services, tmp_path: Path) -> Iterator[World]:
    with parts.sessions() as session:
        yield World.make(session, parts.settings, tmp_path)
        session.commit()


@pytest.fixture
def get(world: World, api_client: TestClient) -> Callable[..., dict]:  # type: ignore[type-arg] - JSON
    def ask(status: int = 200, **query: object) -> dict:  # type: ignore[type-arg] - JSON
        world.session.commit()
        answer = api_client.get(ADDRESS, params=query)
        assert answer.status_code == status, answer.text
        found: dict = answer.json()  # type: ignore[type-arg] - JSON
        return found

    return ask


def names(found: dict) -> list[str]:  # type: ignore[type-arg] - JSON
    return [row["name"] for row in found["rows"]]


def test_no_name_compares_the_last_group_that_has_finished(
    world: World,
    get: Callable[..., dict],  # type: ignore[type-arg] - JSON
) -> None:
    kd, labels = world.start("kd"), world.start("labels", 0.0, target="reference")
    assert "nothing" in get(404)["message"].lower()
    world.anchors()
    world.finish(kd, 95)
    world.finish(labels, 60)
    unfinished = world.start("kd", group="g2")
    world.start("tuned", 0.0, group="tuning")

    found = get()
    assert set(found) == {
        *("deciding_metric", "tolerance", "baseline", "sentence", "warnings"),
        *("rows", "differences", "recipes"),
    }
    assert names(found) == ["teacher", "undistilled", "kd", "labels"]
    assert [row["role"] for row in found["rows"]] == [
        *("teacher", "undistilled", "distilled", "labels_only"),
    ]
    assert (found["baseline"], found["deciding_metric"], found["tolerance"]) == (
        *("labels", "exact_match"),
        2.0,
    )
    assert set(found["rows"][0]["cells"]["exact_match"]) == {"value", "low", "high", "n"}
    # 35 of 100 differ, all wins: Σ(d − .35)² = 22.75, × 100/99; and two pseudo-observations.
    (d,) = (
        d
        for d in found["differences"]
        if (d["a"], d["b"], d["metric"]) == ("kd", "labels", "exact_match")
    )
    error = (22.75 * 100 / 99 + 2) ** 0.5 / 100
    assert d["value"] == pytest.approx(0.35)
    assert d["low"] == pytest.approx(0.35 - t_quantile(0.95, 99) * error)
    assert (d["n"], d["verdict"]) == (100, "better")

    world.finish(unfinished, 90)
    assert names(get()) == ["teacher", "undistilled", "kd"]
    # A run that was started by itself does not take the place of a group.
    world.finish(world.start("alone", group=None), 10)
    assert names(get()) == ["teacher", "undistilled", "kd"]


def test_rows_by_name_number_and_evaluation(world: World, get: Callable[..., dict]) -> None:  # type: ignore[type-arg] - JSON
    first, second = world.start("kd"), world.start("kd", group="g2")
    third = world.start("seq", 0.0)
    world.anchors()
    for run, right in ((first, 90), (second, 80), (third, 70)):
        world.finish(run, right)
    own = world.of_run(third).id

    assert names(get(run=["seq", "kd"])) == ["teacher", "undistilled", "seq", "kd"]
    found = get(run=["#1", "2"])
    assert names(found) == ["teacher", "undistilled", "kd #1", "kd #2"]
    values = [row["cells"]["exact_match"]["value"] for row in found["rows"]]
    assert values == [0.95, 0.0, 0.9, 0.8]
    assert names(get(evaluation=[own])) == ["teacher", "undistilled", "seq"]
    assert names(get(group="g2")) == ["teacher", "undistilled", "kd"]
    assert get(run=["1", "3"], baseline="#3")["baseline"] == "seq"
    assert get(run=["1", "3"], baseline="kd")["baseline"] == "kd"
    assert "no run “gone”" in get(404, run=["gone"])["message"]
    assert "baseline" in get(404, run=["kd"], baseline="seq")["message"]
    assert get(404, evaluation=[9999])["message"] == "There is no evaluation 9999 in this project."


def test_other_sets_are_left_out_by_name(world: World, get: Callable[..., dict]) -> None:  # type: ignore[type-arg] - JSON
    newer = made_rows.version(world.session, world.project, world.settings, number=2)
    old = world.start("old")
    world.anchors()
    world.finish(old, 50)
    for name, right in (("kd", 90), ("kd2", 91)):
        run = world.start(name, version=newer)
        world.anchors()
        world.finish(run, right)
    found = get(run=["old", "kd", "kd2"])
    assert names(found) == ["teacher", "undistilled", "kd", "kd2"]
    (warning,) = found["warnings"]
    assert warning == (
        "old is left out: it was evaluated on traffic@1, teacher on traffic@2. "
        "Evaluate it again on that version."
    )


def test_a_failed_run_ends_its_group_and_has_no_row(
    world: World,
    get: Callable[..., dict],  # type: ignore[type-arg] - JSON
) -> None:
    good, bad = world.start("kd"), world.start("broken")
    world.anchors()
    world.finish(good, 90)
    training: Job = next(j for j in world.jobs(bad) if j.kind == "train")
    made_rows.bring_to(world.session, training.id, JobState.RUNNING)
    assert "no group of runs has ended" in get(404)["message"]
    assert names(get(run=["kd", "broken"])) == ["teacher", "undistilled", "kd"]
    made_rows.bring_to(world.session, training.id, JobState.FAILED, message="No memory.")
    assert world.of_run(bad).state == "failed"
    assert names(get()) == ["teacher", "undistilled", "kd"]


def test_csv_reads_back(world: World, api_client: TestClient) -> None:
    kd = world.start("=1+1")
    world.anchors()
    world.finish(kd, 90)
    world.session.commit()
    asked = [
        api_client.get(ADDRESS, params={"format": "csv"}),
        api_client.get(ADDRESS, headers={"Accept": "text/csv"}),
    ]
    assert asked[0].text == asked[1].text
    assert "support-router-comparison.csv" in asked[0].headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(asked[0].text.removeprefix("\ufeff"))))
    assert [row["name"] for row in rows] == ["teacher", "undistilled", "'=1+1"]
    assert float(rows[2]["Exact match (%)"]) == 90
    assert float(rows[2]["KL to teacher (nats)"]) == pytest.approx((90 * 0.1 + 10 * 2.1) / 1000)
    assert (rows[2]["Generation speed n"], rows[2]["Exact match n"]) == ("3", "100")
    assert api_client.get(ADDRESS, params={"format": "xml"}).status_code == 422


def test_the_same_queries_however_many_rows(
    world: World, api_client: TestClient, count_queries: Callable[[Callable[[], object]], int]
) -> None:
    counts = []
    for names in (["a"], [f"b{n}" for n in range(6)]):
        for name in names:
            run = world.start(name)
            world.anchors()
            world.finish(run, 80)
        world.session.commit()
        counts.append(count_queries(lambda: api_client.get(ADDRESS)))
    assert counts[0] == counts[1]


def test_a_metric_without_any_value_is_null(
    world: World,
    get: Callable[..., dict],  # type: ignore[type-arg] - JSON
) -> None:
    run = world.start("kd")
    world.anchors()
    found = world.finish(run, 90)
    nothing = EvaluationMetric(
        evaluation_id=found.id,
        metric="validation/kl",
        slice="all",
        value=math.nan,
        n=0,
        excluded=100,
        paired=True,
        sums=np.zeros(100).tobytes(),
        counts=np.zeros(100).tobytes(),
    )
    world.session.add(nothing)
    cell = get()["rows"][2]["cells"]["validation/kl"]
    assert cell == {"value": None, "low": None, "high": None, "n": 0}
