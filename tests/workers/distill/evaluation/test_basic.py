"""The basic pack against values computed another way, and that it is deterministic."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from app.specs.conversation import Conversation, Message
from app.specs.evaluation import EvaluationReport, EvaluationSpec, MetricSums
from app.specs.training import RenderSpec
from bench.made_tickets import conversation, tickets
from tests.workers.distill import tiny
from workers.distill.callbacks import Silent
from workers.distill.errors import NothingToTrainError
from workers.distill.evaluation.basic import run_evaluation
from workers.distill.generate import Generation, generate
from workers.distill.rendering import Renderer

SPEC = EvaluationSpec(max_new_tokens=6, batch_size=3)
RENDER = RenderSpec(max_tokens=256)


def _run(
    model: Any, conversations: Any, folder: Path, teacher: Any = None, spec: EvaluationSpec = SPEC
) -> tuple[EvaluationReport, dict[str, MetricSums], list[dict[str, Any]]]:
    report = run_evaluation(
        model,
        tiny.make_tokenizer(),
        conversations,
        teacher=teacher,
        render=RENDER,
        spec=spec,
        out_file=folder / "rows.parquet",
        callbacks=Silent(),
    )
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    return report, {m.metric: m for m in report.metrics}, rows


def _value(sums: MetricSums) -> float:
    return sum(sums.sums) / sum(sums.counts)


@pytest.fixture(scope="module")
def made() -> list[Conversation]:
    return [
        conversation(t, labelled=i % 2 == 0).model_copy(update={"group": f"g{i % 3}"})
        for i, t in enumerate(tickets(7, 5))
    ]


def test_fidelity_equals_the_definition(made: list[Conversation], tmp_path: Path) -> None:
    student, teacher = tiny.make_model(seed=1), tiny.make_model(seed=2)
    _, metrics, rows = _run(student, made, tmp_path, teacher)
    renderer = Renderer(tiny.make_tokenizer(), RENDER)
    total, agreed, tokens = 0.0, 0, 0
    for one, row in zip(made, rows, strict=True):
        rendered = renderer.render(one)
        at = torch.from_numpy(rendered.target_mask[1:])
        p, q = (
            torch.log_softmax(tiny.logits(m, rendered.input_ids.tolist())[:-1][at].double(), -1)
            for m in (teacher, student)
        )
        kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        assert row["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
        total, tokens = total + float(kl.sum()), tokens + int(at.sum())
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
    assert _value(metrics["kl"]) == pytest.approx(total / tokens, rel=1e-4)
    assert _value(metrics["agreement"]) == pytest.approx(agreed / tokens)
    assert sum(metrics["kl"].counts) == tokens
    assert (metrics["kl"].n, metrics["kl"].excluded) == (7, 0)


def test_a_teacher_measured_against_itself(made: list[Conversation], tmp_path: Path) -> None:
    teacher = tiny.make_model(seed=2)
    _, metrics, _ = _run(teacher, made, tmp_path, teacher)
    assert _value(metrics["kl"]) == pytest.approx(0.0, abs=1e-9)
    assert _value(metrics["agreement"]) == 1.0


def test_what_the_model_generates_is_what_is_scored(
    made: list[Conversation], tmp_path: Path
) -> None:
    model = tiny.make_model(seed=1)
    answers = _answers(model, made)
    right = {0, 3, 4}  # the truth of these is what the model says
    set_ = [
        _with_truth(c, answers[i].text if i in right else '{"no": 1}') for i, c in enumerate(made)
    ]
    report, metrics, rows = _run(model, set_, tmp_path)
    assert [r["exact_match"] for r in rows] == [float(i in right) for i in range(7)]
    assert _value(metrics["exact_match"]) == pytest.approx(3 / 7)
    assert report.clusters == ("g0", "g1", "g2")
    # conversations 0, 3, 6 | 1, 4 | 2, 5
    assert metrics["exact_match"].sums == (2.0, 1.0, 0.0)
    assert metrics["exact_match"].counts == (3.0, 2.0, 2.0)
    assert metrics["field_f1"].n == 4, "where the truth is no JSON object it is left out"
    for row, answer in zip(rows, answers, strict=True):
        expected = torch.tensor(answer.logprobs).sum().exp()
        assert row["confidence"] == pytest.approx(float(expected), rel=1e-3)
        assert row["tokens"] == len(answer.ids)
    assert _value(metrics["ece"]) == pytest.approx(
        sum(abs(r["confidence"] - r["exact_match"]) for r in rows) / 7
    ), "7 answers in 15 bins: each is its own bin"
    assert "kl" not in metrics
    assert report.generated_tokens == sum(len(a.ids) for a in answers)
    speed = metrics["tokens_per_second"]
    assert (speed.paired, speed.n, len(speed.sums)) == (False, 3, 3)
    assert sum(speed.sums) == report.generated_tokens


def test_truth_is_the_reference_where_asked(made: list[Conversation], tmp_path: Path) -> None:
    model = tiny.make_model(seed=1)
    kinds = {}
    for truth in ("auto", "reference", "logged"):
        spec = SPEC.model_copy(update={"truth": truth})
        _, metrics, rows = _run(model, made, tmp_path, spec=spec)
        kinds[truth] = [r["truth_kind"] for r in rows]
        assert metrics["exact_match"].excluded == kinds[truth].count("none")
    assert kinds["auto"] == ["reference", "logged"] * 3 + ["reference"]
    assert kinds["reference"] == ["reference", "none"] * 3 + ["reference"]
    assert kinds["logged"] == ["logged"] * 7


def test_the_same_twice(made: list[Conversation], tmp_path: Path) -> None:
    student, teacher = tiny.make_model(seed=1), tiny.make_model(seed=2)
    first, again = (_run(student, made, tmp_path, teacher) for _ in range(2))
    assert first[2] == again[2]
    timed = "tokens_per_second"
    assert [m for m in first[0].metrics if m.metric != timed] == [
        m for m in again[0].metrics if m.metric != timed
    ]


def test_only_the_last_target_turn_is_asked(tmp_path: Path) -> None:
    turns = (
        Message(role="user", content="one"),
        Message(role="assistant", content="first", is_target=True),
        Message(role="user", content="two"),
        Message(role="assistant", content="second", is_target=True),
        Message(role="user", content="thanks"),
    )
    _, _, rows = _run(tiny.make_model(), [Conversation(messages=turns, group="g")], tmp_path)
    assert rows[0]["truth"] == "second"
    assert rows[0]["prompt"].endswith("<|user|>two<|end|><|assistant|>")
    assert "first" in rows[0]["prompt"]


def test_a_set_without_a_target_is_named(tmp_path: Path) -> None:
    nothing = Conversation(messages=(Message(role="user", content="hello"),))
    with pytest.raises(NothingToTrainError, match="no target turn"):
        _run(tiny.make_model(), [nothing], tmp_path)


def _answers(model: Any, conversations: list[Conversation]) -> list[Generation]:
    renderer = Renderer(tiny.make_tokenizer(), RENDER)
    prompts = [renderer.render_prompt(c.messages[:-1]).tolist() for c in conversations]
    return generate(
        model, tiny.make_tokenizer(), prompts, max_new_tokens=6, batch_size=7, callbacks=Silent()
    )


def _with_truth(one: Conversation, truth: str) -> Conversation:
    last = one.messages[-1].model_copy(update={"reference": truth})
    return one.model_copy(update={"messages": (*one.messages[:-1], last)})


def test_rows_hold_json_that_people_can_read(made: list[Conversation], tmp_path: Path) -> None:
    _, _, rows = _run(tiny.make_model(), made, tmp_path)
    assert all(json.loads(r["truth"])["intent"] for r in rows)
    assert [r["conversation_id"] for r in rows] == [c.id for c in made]
