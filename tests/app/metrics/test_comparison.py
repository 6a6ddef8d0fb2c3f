import json

import numpy as np
import pytest

from app.metrics.comparison import EvaluationRow, compare
from app.metrics.forest import bar, scale_for
from app.metrics.formatting import (
    delta_interval,
    duration,
    estimate_minutes,
    metric_delta,
    number,
    signed,
    size,
    tokens,
)
from app.metrics.statistics import ClusterSums, Estimate
from app.metrics.tables import Table, comparison_table, figures_table, to_csv, to_markdown
from app.metrics.verdicts import against_baseline, against_teacher


def row(name: str, role: str, right: int, version: int = 1, n: int = 200) -> EvaluationRow:
    hits = (np.arange(n) < right).astype(float)
    sums = {"exact_match": ClusterSums(hits, np.ones(n), n)}
    return EvaluationRow(name, role, sums, version, "same")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.015, 0.001, "within"), (-0.054, -0.03, "outside"), (-0.025, -0.007, "not proven")],
)
def test_teacher_verdict_follows_from_the_interval(low: float, high: float, word: str) -> None:
    e = Estimate((low + high) / 2, low, high)
    assert against_teacher("exact_match", e, 2060, 2.0) == word
    assert against_teacher("exact_match", e, 29, 2.0) == "too few"


@pytest.mark.parametrize(
    ("metric", "value", "p", "word"),
    [
        ("exact_match", 0.05, 0.01, "better"),
        ("exact_match", -0.05, 0.01, "worse"),
        ("kl", -0.05, 0.01, "better"),
        ("kl", 0.05, 0.01, "worse"),
        ("kl", 0.05, 0.2, "no evidence"),
    ],
)
def test_baseline_verdict_knows_direction(metric: str, value: float, p: float, word: str) -> None:
    e = Estimate(value, value - 0.01, value + 0.01)
    assert against_baseline(metric, e, 200, p) == word
    assert against_baseline(metric, Estimate(value, -0.1, 0.1), 200, p) == "no evidence"


def test_comparison_json_and_words() -> None:
    rows = [
        row("teacher", "teacher", 190),
        row("kd", "distilled", 189),
        row("labels", "labels_only", 120),
        row("old", "distilled", 10, version=2),
    ]
    c = compare(rows, deciding_metric="exact_match", tolerance=2.0)
    out = json.loads(json.dumps(c.as_json(), allow_nan=False))
    assert set(out) == {"deciding_metric", "rows", "differences"}
    assert set(out["rows"][0]) == {"name", "role", "cells"}
    assert set(out["rows"][0]["cells"]["exact_match"]) == {"value", "low", "high", "n"}
    assert set(out["differences"][0]) == {
        "a",
        "b",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "verdict",
    }
    found = {(d.a, d.b): d.verdict for d in c.differences}
    assert found == {
        ("kd", "teacher"): "within",
        ("labels", "teacher"): "outside",
        ("kd", "labels"): "better",
    }
    assert "old is left out" in c.warnings[0]
    assert "kd is within 2 points of teacher on Exact match: −0.5" in c.sentence
    assert c.sentence.endswith("this checkpoint; another seed may differ.")
    table = comparison_table(c)
    assert table.rows[1][2] == "94.5 (90.4 … 96.9) n 200"
    assert to_markdown(table).count("\n") == 5
    csv_lines = to_csv(figures_table(c)).splitlines()
    assert csv_lines[0] == "name,role,metric,value,low,high,n,excluded"
    assert csv_lines[2].startswith("kd,distilled,exact_match,0.945,")


def test_what_cannot_be_negative_has_no_negative_bound() -> None:
    values = np.r_[np.zeros(39), 1.0]
    sums = {"kl": ClusterSums(values, np.ones(40), 40)}
    cell = EvaluationRow("kd", "distilled", sums, 1, "same").cells()["kl"]
    assert cell.low == 0
    assert cell.high is not None
    assert cell.high > cell.value > 0


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="bleu cannot decide"):
        compare([], deciding_metric="bleu", tolerance=2)
    with pytest.raises(ValueError, match="x cannot be the baseline"):
        compare([row("t", "teacher", 9)], deciding_metric="kl", tolerance=2, baseline="x")


def test_csv_runs_no_formula_and_keeps_numbers() -> None:
    text = to_csv(Table(("a",), (("=1+1",), ("−1,234.5",), ("@x",), ("-x",))))
    assert text == "a\n'=1+1\n-1234.5\n'@x\n'-x\n"


def test_numbers_as_the_design_writes_them() -> None:
    assert (number(2060), number(None), signed(-0.04, 1)) == ("2,060", "—", "0.0")
    assert delta_interval("exact_match", -0.015, 0.001) == "[−1.5, +0.1]"
    assert metric_delta("kl", -0.0731) == "−0.073"
    assert [duration(s) for s in (8, 370, 2700, 13260)] == ["8 s", "6 m 10 s", "45 m", "3 h 41 m"]
    assert (size(96 * 2**30), tokens(44_280_000)) == ("96.0 GiB", "44.28 M")
    assert estimate_minutes(58, 52, 66) == "about 58 min (52–66)"


def test_forest_is_inside_its_width() -> None:
    scale = scale_for([(-4.0, 0.5)], 2.0)
    found = bar(scale, -1.0, (-4.0, 0.5), -2.0)
    assert found.low == 2
    assert found.low < found.tolerance < found.value < found.zero < found.high < 130
