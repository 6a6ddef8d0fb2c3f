"""Scores by hand: exact match, field F1, ECE and its terms, sums per cluster."""

import numpy as np
import pytest

from workers.distill.evaluation.scoring import exact_match, field_f1
from workers.distill.evaluation.sums import Clusters, calibration_terms


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [
        (" yes\n", "yes", 1.0),
        ("Yes", "yes", 0.0),
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', 1.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', 0.0),
        ('{"a": NaN}', '{"a": NaN }', 0.0),
        ('{"a": 1', '{"a": 1}', 0.0),
        ("[" * 100_000, "[]", 0.0),
    ],
)
def test_exact_match(prediction: str, truth: str, value: float) -> None:
    assert exact_match(prediction, truth) == value


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": 3}', 2 / 3),
        ('{"x": {"y": [1, 2]}}', '{"x": {"y": [1, 3]}}', 0.5),
        ('{"a.b": 1}', '{"a": {"b": 1}}', 0.0),
        ("sorry", '{"a": 1}', 0.0),
        ("[1]", '{"a": 1}', 0.0),
        ("{}", "{}", 1.0),
        ('{"a": 1}', "plain words", None),
        ('{"a": 1}', "[1]", None),
    ],
)
def test_field_f1(prediction: str, truth: str, value: float | None) -> None:
    found = field_f1(prediction, truth)
    assert found == (value if value is None else pytest.approx(value))


def test_calibration_by_hand() -> None:
    confidence = np.array([0.9, 0.2, 0.8, 0.4])
    correct = np.array([1.0, 0.0, 0.0, 1.0])
    # by confidence: (0.2, 0), (0.4, 1) | (0.8, 0), (0.9, 1): gaps sum to −0.4 and +0.7
    terms = calibration_terms(confidence, correct, 2)
    assert terms.mean() == pytest.approx((0.4 + 0.7) / 4)
    assert terms == pytest.approx([-0.1, -0.2, 0.8, 0.6])


def test_a_perfectly_sure_and_right_answer_has_no_error() -> None:
    assert calibration_terms(np.ones(5), np.ones(5), 15).tolist() == [0.0] * 5


def test_sums_per_cluster() -> None:
    clusters = Clusters(["b", "a", "b", "c"])
    assert clusters.names == ("a", "b", "c")
    sums = clusters.sums("kl", [1.0, 2.0, None, None], [10, 4, 7, 7])
    assert sums is not None
    assert (sums.sums, sums.counts) == ((2.0, 1.0, 0.0), (4.0, 10.0, 0.0))
    assert (sums.n, sums.excluded) == (2, 2)
    assert clusters.sums("kl", [None] * 4) is None
