"""A spec with lists of values stands for every combination, told in the names."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.dashboard import knobs
from app.dashboard.fan_out import MOST_RUNS, TooMany, fan_out
from app.web.deps import Services
from tests.app.dashboard.test_new_run import answer_to, values, values_of  # noqa: F401 - a fixture
from tests.support import made_rows

RUNS = "/projects/support-router/runs"
API = f"/api/v1{RUNS}"


def test_every_combination_is_named_after_what_varies() -> None:
    tree = {"name": "kd", "training": {"seed": [0, 1], "objective": {"alpha": [0.5, 0.9]}}}
    found = fan_out(tree)
    assert [f["name"] for f in found] == [
        "kd, α 0.5, seed 0",
        "kd, α 0.5, seed 1",
        "kd, α 0.9, seed 0",
        "kd, α 0.9, seed 1",
    ]
    first, last = found[0]["training"], found[-1]["training"]
    assert (first["seed"], first["objective"]["alpha"]) == (0, 0.5)
    assert (last["seed"], last["objective"]["alpha"]) == (1, 0.9)
    assert tree["training"]["seed"] == [0, 1], "the given tree stays as it is"


def test_what_explains_an_option_is_left_out_of_a_name() -> None:
    tree = {
        "name": "kd",
        "capture": {"name": ["standard", "audit"]},
        "training": {"objective": {"teacher": ["cache", "live"]}},
    }
    assert [f["name"] for f in fan_out(tree)] == [
        "kd, teacher stored, standard",
        "kd, teacher stored, audit",
        "kd, teacher live, standard",
        "kd, teacher live, audit",
    ]


@pytest.mark.parametrize(
    "training", [{}, {"seed": 3}, {"seed": [3]}, {"seed": [3, 3]}, {"schedule": {"betas": [0, 1]}}]
)
def test_one_value_is_one_run_of_its_own_name(training: dict[str, Any]) -> None:
    [only] = fan_out({"name": "kd", "training": training})
    assert only["name"] == "kd"
    assert only["training"].get("seed", 3) == 3


@pytest.mark.parametrize("named", [{}, {"name": ""}, {"name": " "}, {"name": None}])
def test_a_missing_name_is_not_made_up(named: dict[str, Any]) -> None:
    found = fan_out({**named, "training": {"seed": [0, 1]}})
    assert [f.get("name") for f in found] == [named.get("name")] * 2


def test_only_what_compared_runs_may_differ_in_varies() -> None:
    fixed = {"temperatures", "freeze_embeddings", "gradient_checkpointing", "packing"}
    fixed |= {k.name for k in knobs.of_group(knobs.EVALUATION)}
    assert {knob.name for knob in knobs.KNOBS if not knob.may_vary} == fixed
    capture = {"temperatures": [1, 2]}
    [only] = fan_out({"name": "kd", "capture": capture})
    assert only["capture"] == capture


def test_a_slip_of_the_hand_starts_no_thousand_runs() -> None:
    with pytest.raises(TooMany, match=f"stand for 100 runs, and at most {MOST_RUNS}"):
        fan_out({"training": {"seed": list(range(10)), "schedule": {"steps": list(range(10))}}})


def test_the_form_starts_every_combination_once(
    pages: TestClient,
    values: dict[str, Any],  # noqa: F811
) -> None:
    several = {**values, "seed": "0, 1, 2", "alpha": "0.5; 0.9"}
    asked = answer_to(pages, several, also=["sequence_level"])
    assert "Start 9 runs" in asked  # alpha is the teacher's weight: sequence-level has none
    assert values_of(asked)["seed"] == "0, 1, 2"
    answer = pages.post(RUNS, data={**several, "also": ["sequence_level"]})
    assert answer.headers["location"] == f"{RUNS}?group=traffic-v1"
    again = pages.post(RUNS, data={**several, "also": ["sequence_level"]})
    assert again.headers["location"] == answer.headers["location"]
    runs = pages.get(f"{API}?limit=50").json()
    assert sorted(r["name"] for r in runs) == sorted(
        [f"distilled, α {a}, seed {s}" for a in (0.5, 0.9) for s in range(3)]
        + [f"sequence-level, seed {s}" for s in range(3)]
    )
    caches = {job["job_id"] for r in runs for job in r["jobs"] if job["role"] == "precompute"}
    assert len(caches) == 1, "one teacher cache serves them all"


@pytest.mark.parametrize(
    ("field", "typed", "sentence"),
    [
        ("alpha", "0.5, 2", "at most 1"),
        ("alpha", "0,5", "Must be a number"),
        ("alpha", "0, 0.5", "it is sequence-level"),
        ("seed", "0, x", "whole number"),
        ("seed", ", ".join(map(str, range(30))), "at most 24 start together"),
        ("ece_bins", "5, 10", "whole number"),
    ],
)
def test_a_wrong_value_among_several_starts_none(
    pages: TestClient,
    values: dict[str, Any],  # noqa: F811
    field: str,
    typed: str,
    sentence: str,
) -> None:
    answer = pages.post(RUNS, data={**values, field: typed})
    assert answer.status_code == 422
    assert sentence in answer.text
    assert values_of(answer.text)[field] == typed
    assert pages.get(API).json() == []


def test_what_keeps_all_from_starting_is_told_once(
    pages: TestClient,
    values: dict[str, Any],  # noqa: F811
) -> None:
    asked = answer_to(pages, {**values, "seed": "0, 1, 2", "temperature": "3"})
    assert asked.count('class="problem"') == 1


def test_the_api_takes_lists_of_values_or_of_runs(api_client: TestClient, parts: Services) -> None:
    with parts.sessions.begin() as session:
        project = made_rows.project(session)
        made_rows.teacher_and_student(session, project)
        made_rows.version(session, project, parts.settings)
    wanted = {"name": "kd", "dataset": "traffic", "training": {"seed": [0, 1, 2]}}
    key = {"Idempotency-Key": "k1"}
    first = api_client.post(f"{API}/group", json=wanted, headers=key)
    assert first.status_code == 201, first.text
    assert [(r["number"], r["name"]) for r in first.json()] == [
        (1, "kd, seed 0"),
        (2, "kd, seed 1"),
        (3, "kd, seed 2"),
    ]
    again = api_client.post(f"{API}/group", json=wanted, headers=key)
    assert [r["number"] for r in again.json()] == [1, 2, 3]
    good = {"name": "a", "dataset": "traffic"}
    listed = api_client.post(f"{API}/group", json=[good, {**good, "name": "b"}])
    assert [r["name"] for r in listed.json()] == ["a", "b"]
    bad = api_client.post(f"{API}/group", json=[good, {**good, "dataset": "none"}])
    assert bad.status_code == 422
    many = api_client.post(f"{API}/group", json={**wanted, "training": {"seed": list(range(99))}})
    assert (many.status_code, "stand for 99 runs" in many.text) == (422, True)
    assert len(api_client.get(API).json()) == 5, "none of a group that cannot start has started"
