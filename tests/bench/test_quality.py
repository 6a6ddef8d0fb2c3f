"""The quality bench on a toy setting: whole, and going on where it was interrupted."""

from pathlib import Path

import numpy as np
import pytest

from app.demo.setting import QUICK, DemoSetting
from bench import quality

SIZES = {"tune": 24, "train": 20, "validation": 4, "test": 31, "labelled": 8}


def toy() -> DemoSetting:
    """Return the quick setting at a few steps on a few tickets."""

    def short(spec: quality.TrainingSpec) -> quality.TrainingSpec:
        few = {"steps": 3, "batch_size": 4, "validate_every": 3}
        return spec.model_copy(update={"schedule": spec.schedule.model_copy(update=few)})

    changed = {
        "choosing": QUICK.choosing.model_copy(update=SIZES),
        "tuning": short(QUICK.tuning),
        "runs": {role: short(spec) for role, spec in QUICK.runs.items()},
        "evaluation": QUICK.evaluation.model_copy(update={"max_new_tokens": 6}),
    }
    return QUICK.model_copy(update=changed)


@pytest.mark.slow
def test_every_row_is_measured_and_nothing_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = toy()
    bench = quality.Bench(setting, setting.choosing, tmp_path)
    figures = quality.summary(bench, "validation", [0, 1])
    assert list(figures["rows"]) == ["teacher", "undistilled", *quality.STUDENTS]
    for name, cells in figures["rows"].items():
        assert set(cells) == set(quality.METRICS)
        assert cells["exact_match"]["n"] == SIZES["test"]
        repeated = len(set(cells["kl"]["seeds"])) == 1
        assert repeated == (name not in quality.STUDENTS)
    assert figures["rows"]["teacher"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    pairs = figures["differences"]
    assert set(pairs) == {f"distilled - {other}" for other in quality.COMPARED}
    kl = {name: cells["kl"]["seeds"] for name, cells in figures["rows"].items()}
    for entry in pairs["distilled - labels_only"]["kl"]:
        seed = entry["seed"]
        expected = kl["distilled"][seed] - kl["labels_only"][seed]
        assert entry["value"] == pytest.approx(expected)
        assert entry["low"] < expected < entry["high"]
    trained_on = {r: figures["costs"]["0"][r]["conversations"] for r in quality.STUDENTS}
    assert trained_on == {"distilled": 20, "sequence_level": 20, "labels_only": 8}
    assert "seed 1" in quality.table(figures)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished piece was made again")

    for maker in ("fit", "generate", "capture", "run_evaluation", "prune", "make_tiny_teacher"):
        monkeypatch.setattr(quality, maker, refuse)
    assert figures["over_seeds"] == {}, "two seeds show nothing of a recipe"
    again = quality.summary(bench, "validation", [0, 1])
    assert (again["rows"], again["costs"]) == (figures["rows"], figures["costs"])


def test_three_seeds_are_told_as_recipes() -> None:
    def made(name: str, role: quality.EvaluationRole, right: int) -> quality.EvaluationRow:
        hits = quality.ClusterSums((np.arange(100) < right).astype(float), np.ones(100), 100)
        return quality.EvaluationRow(name, role, {"exact_match": hits}, 1, "same")

    every = {
        seed: {
            "teacher": made("teacher", "teacher", 95),
            "undistilled": made("undistilled", "undistilled", 0),
            "distilled": made("distilled", "distilled", 94 + seed),
            "sequence_level": made("sequence_level", "sequence_level", 95 - seed),
            "labels_only": made("labels_only", "labels_only", 50 + seed),
        }
        for seed in range(3)
    }
    found = quality.over_seeds(every)
    assert set(found) == {f"distilled - {other}" for other in quality.COMPARED}
    labels = found["distilled - labels_only"]["exact_match"]
    assert labels["value"] == pytest.approx(0.44)
    assert (labels["verdict"], labels["low"] > 0.3) == ("better", True)
