"""Scores by hand, and one evaluation whose sums are checked against its own rows."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from app.specs.evaluation import EvaluationSpec
from app.specs.training import RenderSpec
from tests.workers.distill import tiny
from workers.distill.callbacks import Silent, Stopped
from workers.distill.evaluation.run import run_evaluation
from workers.distill.evaluation.scores import ece_contributions, exact_match, field_f1

SPEC = EvaluationSpec(max_new_tokens=5, batch_size=4, ece_bins=3)


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (" yes\n", "yes", True),
        ('{"b":1,"a":2}', '{"a": 2, "b": 1}', True),
        ('{"a":1}', '{"a":1.0}', False),
        ('{"a":1}', '{"a":true}', False),
        ("Yes", "yes", False),
        ("[" * 100_000, "x", False),
    ],
)
def test_exact_match(prediction: str, truth: str, *, expected: bool) -> None:
    assert exact_match(prediction, truth) is expected


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ('{"a":1,"b":2}', '{"a":1,"b":3}', 0.5),
        ('{"a":1}', '{"a":1,"b":{"c":2,"d":3}}', 0.5),  # 2·1 / (1 + 3)
        ('{"a":[1,2]}', '{"a":[2,1]}', 0.0),
        ("no json", '{"a":1}', 0.0),
        ('{"a":NaN}', '{"a":1}', 0.0),
        ('{"a":1}', "not json", None),
        ("{}", "{}", 1.0),
    ],
)
def test_field_f1(prediction: str, truth: str, expected: float | None) -> None:
    assert field_f1(prediction, truth) == expected


def test_ece_by_hand() -> None:
    confidence = np.array([0.9, 0.2, 0.8, 0.4])
    correct = np.array([True, False, False, True])
    # bins by rank: {.2, .4} with S = .2 − .6 = −.4; {.8, .9} with S = .8 − .1 = .7
    parts = ece_contributions(confidence, correct, 2)
    assert parts == pytest.approx([-0.1, -0.2, 0.8, 0.6])
    assert parts.mean() == pytest.approx((0.4 + 0.7) / 4)
    assert ece_contributions(np.array([]), np.array([], dtype=bool), 2).size == 0


def test_report_and_rows_agree_and_the_kl_is_the_dense_one(tmp_path: Path) -> None:
    student, teacher = tiny.llama(seed=1), tiny.llama(hidden=48, seed=2)
    conversations = tiny.tickets(9)
    shared = conversations[1].model_copy(update={"group": conversations[0].group})
    conversations = (conversations[0], shared, *conversations[2:])
    report = run_evaluation(
        student,
        tiny.tokenizer(),
        conversations,
        teacher=teacher,
        render=RenderSpec(),
        spec=SPEC,
        out_file=tmp_path / "rows.parquet",
        callbacks=Silent(),
    )
    metrics = {m.metric: m for m in report.metrics}
    assert set(metrics) == {
        "exact_match",
        "field_f1",
        "kl",
        "agreement",
        "ece",
        "tokens_per_second",
    }
    assert report.clusters == tuple(sorted({c.group for c in conversations}))
    assert sorted(metrics["exact_match"].counts) == [1.0] * 7 + [2.0]
    assert not metrics["tokens_per_second"].paired
    assert sum(metrics["tokens_per_second"].sums) == report.generated_tokens
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    kl = agree = tokens = 0.0
    for item, row in zip(tiny.rendered(conversations), rows, strict=True):
        ids = torch.from_numpy(item.input_ids).long()[None]
        where = np.flatnonzero(item.target_mask) - 1
        with torch.inference_mode():
            p, q = (
                torch.log_softmax(m(input_ids=ids).logits[0, where].double(), -1)
                for m in (teacher, student)
            )
        one = float((p.exp() * (p - q)).sum())
        assert row["kl"] == pytest.approx(one / len(where), rel=1e-4)
        kl, tokens = kl + one, tokens + len(where)
        agree += float((p.argmax(-1) == q.argmax(-1)).sum())
    assert sum(metrics["kl"].sums) == pytest.approx(kl, rel=1e-4)
    assert sum(metrics["kl"].counts) == tokens
    assert sum(metrics["agreement"].sums) == agree


def test_the_teacher_itself_and_its_copy_have_kl_zero_and_agreement_one(tmp_path: Path) -> None:
    model = tiny.llama()
    reports = [
        run_evaluation(
            model,
            tiny.tokenizer(),
            tiny.tickets(3),
            teacher=teacher,
            render=RenderSpec(),
            spec=SPEC.model_copy(update={"truth": truth}),
            out_file=tmp_path / f"{truth}.parquet",
            callbacks=Silent(),
        )
        for teacher, truth in ((model, "reference"), (tiny.llama(), "reference"), (None, "logged"))
    ]
    for report in reports[:2]:
        found = {m.metric: m for m in report.metrics}
        assert sum(found["kl"].sums) == 0
        assert found["agreement"].sums == found["agreement"].counts
    assert {m.metric for m in reports[2].metrics}.isdisjoint({"kl", "agreement"})


def test_conversations_without_the_wanted_truth_are_excluded_and_counted(tmp_path: Path) -> None:
    first, *others = tiny.tickets(3)
    bare = first.model_copy(
        update={"messages": tuple(m.model_copy(update={"reference": None}) for m in first.messages)}
    )
    report = run_evaluation(
        tiny.llama(),
        tiny.tokenizer(),
        [bare, *others],
        teacher=None,
        render=RenderSpec(),
        spec=SPEC.model_copy(update={"truth": "reference"}),
        out_file=tmp_path / "rows.parquet",
        callbacks=Silent(),
    )
    found = {m.metric: m for m in report.metrics}
    assert (found["exact_match"].n, found["exact_match"].excluded) == (2, 1)
    assert (found["ece"].n, found["ece"].excluded) == (2, 1)
    kinds = pq.read_table(tmp_path / "rows.parquet")["truth_kind"].to_pylist()
    assert kinds == [None, "reference", "reference"]


class StopIn(Silent):
    """Asks to stop in one phase."""

    def __init__(self, name: str) -> None:
        self.name = name

    def phase(self, name: str) -> None:
        self.stop = name == self.name


@pytest.mark.parametrize("phase", ["generate", "compare with the teacher"])
def test_a_stop_ends_it_and_leaves_no_part(tmp_path: Path, phase: str) -> None:
    out = tmp_path / "rows.parquet"
    with pytest.raises(Stopped):
        run_evaluation(
            tiny.llama(),
            tiny.tokenizer(),
            tiny.tickets(3),
            teacher=tiny.llama(),
            render=RenderSpec(),
            spec=SPEC,
            out_file=out,
            callbacks=StopIn(phase),
        )
    assert not out.exists()
