import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from app.metrics.comparison import EvaluationRow, compare, reasons_of
from app.metrics.forest import bar, scale_for
from app.metrics.formatting import (
    delta_interval,
    duration,
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


def test_the_headline_is_about_a_row_that_is_compared() -> None:
    rows = [row("undistilled", "undistilled", 10), row("labels", "labels_only", 120)]
    found = compare(rows, deciding_metric="exact_match", tolerance=2.0, baseline="undistilled")
    assert found.sentence.startswith("labels is better than undistilled on Exact match")


def test_comparison_json_and_words() -> None:
    rows = [
        row("teacher", "teacher", 190),
        row("kd", "distilled", 190),
        row("labels", "labels_only", 120),
        row("old", "distilled", 10, version=2),
    ]
    c = compare(rows, deciding_metric="exact_match", tolerance=2.0)
    out = json.loads(json.dumps(c.as_json(), allow_nan=False))
    told = {"tolerance", "baseline", "sentence", "warnings", "recipes"}
    assert set(out) == {"deciding_metric", "rows", "differences"} | told
    assert (out["tolerance"], out["baseline"], out["sentence"]) == (2.0, "labels", c.sentence)
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
        "reason",
    }
    found = {(d.a, d.b): d.verdict for d in c.differences}
    assert found == {
        ("kd", "teacher"): "within",
        ("labels", "teacher"): "outside",
        ("kd", "labels"): "better",
    }
    assert "old is left out" in c.warnings[0]
    assert "kd is within 2 points of teacher on Exact match: 0.0, 95" in c.sentence
    assert c.sentence.endswith("this checkpoint; another seed may differ.")
    table = comparison_table(c)
    assert table.rows[1][2] == "95.0 (91.0 … 97.3) n 200"
    assert to_markdown(table).count("\n") == 5
    read = list(csv.DictReader(io.StringIO(to_csv(figures_table(c, settings={"α": {"kd": 0.7}})))))
    assert list(read[0])[:8] == [
        *("name", "role", "α", "Exact match (%)"),
        *("Exact match low", "Exact match high", "Exact match n", "Exact match excluded"),
    ]
    kd = read[1]
    assert (kd["name"], kd["α"], kd["Exact match (%)"], kd["Exact match n"]) == (
        *("kd", "0.7"),
        *("95.0", "200"),
    )
    d = c.difference("kd", "labels", "exact_match")
    assert d is not None
    assert d.low is not None
    assert float(kd["Exact match minus labels low"]) == pytest.approx(100 * d.low)
    assert kd["Exact match minus labels verdict"] == "better"
    assert kd["Exact match minus teacher verdict"] == "within"
    assert read[2]["Exact match minus labels"] == ""


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


def test_csv_runs_no_formula_and_leaves_text_alone() -> None:
    rows = (("=1+1", 1.5), ("1,2", None), ("@x", -3), ("-x", 0.1), ("−1,234.5", 2))
    read = list(csv.reader(io.StringIO(to_csv(Table(("a", "=b"), rows)))))
    assert read == [
        ["a", "'=b"],
        ["'=1+1", "1.5"],
        ["1,2", ""],
        ["'@x", "-3"],
        ["'-x", "0.1"],
        ["−1,234.5", "2"],
    ]


def test_nothing_measured_is_null_and_a_dash() -> None:
    none = ClusterSums(np.zeros(40), np.zeros(40), 0, excluded=40)
    full = ClusterSums(np.ones(40), np.ones(40), 40)
    rows = [
        EvaluationRow("t", "teacher", {"exact_match": full, "field_f1": none}, 1, "same"),
        EvaluationRow("kd", "distilled", {"exact_match": full, "field_f1": none}, 1, "same"),
    ]
    c = compare(rows, deciding_metric="exact_match", tolerance=2)
    out = json.loads(json.dumps(c.as_json(), allow_nan=False))
    assert out["rows"][1]["cells"]["field_f1"] == {"value": None, "low": None, "high": None, "n": 0}
    (d,) = [d for d in out["differences"] if d["metric"] == "field_f1"]
    assert (d["value"], d["verdict"]) == (None, "not compared")
    assert comparison_table(c).rows[1][3] == "—"
    assert ",0,40," in to_csv(figures_table(c)).splitlines()[2]


def test_a_sentence_says_when_holm_alone_withholds() -> None:
    n = 400
    base = row("labels", "labels_only", 0, n=n)
    # 16 wins of 400: the interval leaves out 0 (p .0002); 10 wins: p .004; 7 wins: p .02.
    rows = [base, *(row(f"kd{k}", "distilled", k, n=n) for k in (7, 7, 7, 7))]
    rows = [base, *(replace(r, name=f"kd{i}") for i, r in enumerate(rows[1:]))]
    c = compare(rows, deciding_metric="exact_match", tolerance=2)
    found = c.difference("kd0", "labels", "exact_match")
    assert found is not None
    assert found.low is not None
    assert found.low > 0
    assert found.verdict == "no evidence"
    assert "kd0 and labels cannot be told apart on Exact match: +1.8, 95" in found.sentence
    assert "leaves out 0, but 4 comparisons were made at once" in found.sentence
    assert found.reason is not None
    assert found.reason.short == "Holm, 4 comparisons"
    (told,) = (d for d in c.as_json()["differences"] if d["a"] == "kd0")
    assert told["reason"] == found.reason.text
    read = next(csv.DictReader(io.StringIO(to_csv(figures_table(c, ["kd0"])))))
    assert read["Exact match minus labels reason"] == found.reason.text
    assert "no evidence (Holm, 4 comparisons) +1.8" in to_markdown(comparison_table(c))
    assert reasons_of(c.differences) == (found.reason,)
    alone = compare(rows[:2], deciding_metric="exact_match", tolerance=2)
    clear = alone.difference("kd0", "labels", "exact_match")
    assert clear is not None
    assert (clear.verdict, clear.reason) == ("better", None)
    assert alone.as_json()["differences"][0]["reason"] is None


@pytest.mark.parametrize(
    ("right", "gap", "verdict"),
    [
        (0, 0.0, "not compared"),  # an untrained student: sure of nothing, right at nothing
        (0, 0.3, "worse"),  # wrong, and sure of it
        (187, 0.0, "better"),  # 1.5 points lower: within the tolerance
        (185, 0.0, "not compared"),
        (200, 0.0, "better"),
    ],
)
def test_a_lower_ece_is_no_merit_of_a_row_that_is_right_less_often(
    right: int, gap: float, verdict: str
) -> None:
    def calibrated(one: EvaluationRow, gap: float) -> EvaluationRow:
        gaps = gap + np.linspace(-0.01, 0.01, 200)
        return replace(one, sums={**one.sums, "ece": ClusterSums(gaps, np.ones(200), 200)})

    labels = calibrated(row("labels", "labels_only", 190), 0.1)
    rows = [labels, calibrated(row("kd", "distilled", right), gap)]
    for metric, tolerance in (("exact_match", 2.0), ("kl", 0.01)):
        found = compare(rows, deciding_metric=metric, tolerance=tolerance)
        d = found.difference("kd", "labels", "ece")
        assert d is not None
        assert d.verdict == verdict
        assert (d.reason is None) == (verdict != "not compared")
        if d.reason:
            assert "exact match that is more than 2 points lower" in d.reason.text
            assert d.sentence == f"kd and labels are not compared on ECE: {d.reason.text}."
            # The other way round it is as little a fault.
            turned = compare(rows, deciding_metric=metric, tolerance=tolerance, baseline="kd")
            assert turned.difference("labels", "kd", "ece").verdict == "not compared"  # type: ignore[union-attr] - it is there


def test_speeds_have_no_verdict() -> None:
    def timed(name: str, role: str, rate: float) -> EvaluationRow:
        speed = ClusterSums(np.full(8, rate), np.ones(8), 8, paired=False)
        return EvaluationRow(name, role, {"tokens_per_second": speed}, 1, "same")

    rows = [timed("t", "teacher", 100.0), timed("kd", "distilled", 400.0)]
    (d,) = compare(rows, deciding_metric="kl", tolerance=2).differences
    assert (d.value, d.verdict) == (300.0, "not compared")
    assert (
        d.sentence
        == "kd and t are not compared on Generation speed: it was measured at other times."
    )


def test_numbers_as_the_design_writes_them() -> None:
    assert (number(2060), number(None), signed(-0.04, 1)) == ("2,060", "—", "0.0")
    assert delta_interval("exact_match", -0.015, 0.001) == "[−1.5, +0.1]"
    assert metric_delta("kl", -0.0731) == "−0.073"
    assert [duration(s) for s in (8, 370, 2700, 13260)] == ["8 s", "6 m 10 s", "45 m", "3 h 41 m"]
    assert (size(96 * 2**30), tokens(44_280_000)) == ("96.0 GiB", "44.28 M")
    assert [size(b) for b in (1023, 1023.6, 1048570, 2**30 - 1)] == [
        *("1,023 B", "1.0 KiB", "1.0 MiB", "1.0 GiB"),
    ]
    assert [tokens(t) for t in (9_999, 9_999.6, 999_949, 999_950)] == [
        *("9,999", "10.0 k", "999.9 k", "1.00 M"),
    ]


def test_forest_is_inside_its_width() -> None:
    scale = scale_for([(-4.0, 0.5)], 2.0)
    found = bar(scale, -1.0, (-4.0, 0.5), -2.0)
    assert found.low == 2
    assert found.low < found.tolerance < found.value < found.zero < found.high < 130


def seeded(name: str, role: str, rights: list[int], *, recipe: str) -> list[EvaluationRow]:
    return [
        replace(row(f"{name}, seed {seed}", role, right), recipe=recipe, seed=seed)
        for seed, right in enumerate(rights)
    ]


def test_the_verdict_is_about_a_recipe_only_from_three_seeds() -> None:
    anchors = [row("teacher", "teacher", 190), row("undistilled", "undistilled", 5)]
    labels = seeded("labels-only", "labels_only", [100, 104, 98], recipe="l")
    distilled = seeded("distilled", "distilled", [186, 188, 187], recipe="d")
    few = compare(
        [*anchors, *labels[:2], *distilled[:2]], deciding_metric="exact_match", tolerance=2.0
    )
    assert few.recipes is None
    assert few.sentence.endswith("The verdict is about this checkpoint; another seed may differ.")
    found = compare([*anchors, *labels, *distilled], deciding_metric="exact_match", tolerance=2.0)
    recipes = found.recipes
    assert recipes is not None
    names = ["teacher", "undistilled", "labels-only (3 seeds)", "distilled (3 seeds)"]
    assert [r.name for r in recipes.rows] == names
    assert recipes.baseline == "labels-only (3 seeds)"
    assert recipes.rows[3].cells()["exact_match"].value == pytest.approx(187 / 200)
    assert recipes.sentences[-1].startswith("The verdict is about this recipe, over 3 seeds")
    better = recipes.difference(names[3], names[2], "exact_match")
    assert better is not None
    assert (better.verdict, better.n) == ("better", 200)
    assert found.as_json()["recipes"]["differences"]
    assert found.sentence.endswith(recipes.sentence)


def test_seeds_that_differ_much_show_nothing_of_the_recipe() -> None:
    labels = seeded("labels-only", "labels_only", [80, 180, 78], recipe="l")
    distilled = seeded("distilled", "distilled", [186, 188, 187], recipe="d")
    found = compare([*labels, *distilled], deciding_metric="exact_match", tolerance=2.0)
    first = found.difference("distilled, seed 0", "labels-only, seed 0", "exact_match")
    assert first is not None
    assert first.verdict == "better", "of these two checkpoints it is true"
    assert found.recipes is not None
    whole = found.recipes.differences[0]
    assert (whole.metric, whole.verdict) == ("exact_match", "no evidence")


def test_a_seed_counts_once_and_recipes_of_one_name_are_told_apart() -> None:
    twice = seeded("kd", "distilled", [150, 151, 152], recipe="a")
    twice.append(replace(twice[0], name="kd, again"))
    other = seeded("kd", "distilled", [100, 101, 102], recipe="b")
    other = [replace(r, name=f"{r.name} #{n}") for n, r in enumerate(other)]
    found = compare([*twice, *other], deciding_metric="exact_match", tolerance=2.0)
    assert found.recipes is not None
    names = [r.name for r in found.recipes.rows]
    assert names == ["kd (3 seeds)", "kd (3 seeds), as kd, seed 0 #0"]


def test_a_chosen_baseline_is_its_recipe_where_it_has_one() -> None:
    rows = [
        row("undistilled", "undistilled", 5),
        *seeded("labels-only", "labels_only", [100, 104, 98], recipe="l"),
        *seeded("distilled", "distilled", [186, 188, 187], recipe="d"),
        *seeded("once", "sequence_level", [180], recipe="s"),
    ]
    by_baseline = {}
    for name in ("undistilled", "distilled, seed 1", "once, seed 0"):
        found = compare(rows, deciding_metric="exact_match", tolerance=2.0, baseline=name)
        assert found.recipes is not None
        by_baseline[name] = found.recipes.baseline
    assert by_baseline == {
        "undistilled": "undistilled",
        "distilled, seed 1": "distilled (3 seeds)",
        "once, seed 0": "labels-only (3 seeds)",
    }
