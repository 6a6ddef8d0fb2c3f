"""The demo's log: an import finds exactly what was put in, split into exactly the planned sizes."""

import json
from pathlib import Path

from app.demo.dirt import write_traffic_log
from app.demo.setting import QUICK, REAL, REFERENCE_PATH
from app.demo.tickets import made_tickets
from app.demo.traffic import DrawnTickets, draw, write_prompts, write_tuning
from tests.workers.ingest.conftest import Imported
from workers.ingest.pipeline import import_files

PLAN = QUICK.tickets.model_copy(
    update={"tune": 40, "train": 90, "validation": 10, "test": 30, "labelled": 15}
)


def answers(path: Path, tickets: DrawnTickets) -> list[dict[str, object]]:
    """Return what the job `generate` would leave: right, cut and empty answers."""
    found = []
    truths = [c.messages[-1].content for c in tickets.traffic]
    for number, line in enumerate(path.read_text().splitlines()):
        text, finish = truths[number], "stop"
        if tickets.traffic[number].split == "train" and number % 20 == 0:
            text, finish = text[:5], "length"
        elif tickets.traffic[number].split == "train" and number % 20 == 1:
            text = ""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        response = {"model": "abc", "choices": [choice | {"finish_reason": finish}]}
        found.append({"request": json.loads(line), "response": response})
    return found


def test_an_import_finds_what_was_put_in(tmp_path: Path) -> None:
    tickets, prompts, log = draw(PLAN), tmp_path / "prompts.jsonl", tmp_path / "log.jsonl"
    write_prompts(prompts, tickets.traffic)
    truth = write_traffic_log(log, answers(prompts, tickets), tickets.references, seed=1, dirt=0.4)
    funnel = import_files(
        [log],
        out_dir=tmp_path / "out",
        reference_path=REFERENCE_PATH,
        validation_share=PLAN.validation_share,
        test_share=PLAN.test_share,
    )
    assert (funnel.format, funnel.records) == ("openai_chat", truth.records)
    assert (funnel.calls, funnel.duplicates) == (truth.calls, truth.duplicates)
    assert funnel.skipped == dict(truth.skipped)
    assert funnel.quarantined == dict(truth.quarantined)
    assert funnel.flagged == dict(truth.flagged)
    assert (funnel.conversations, funnel.targets) == (truth.conversations, truth.targets)
    assert funnel.references == truth.references
    assert min(truth.flagged["cut_answer"], truth.skipped["answer_empty"], truth.duplicates) > 2
    assert len(truth.skipped) + len(truth.quarantined) > 8

    imported = [
        c
        for c in Imported(tmp_path / "out", funnel).conversations
        if any(m.is_target for m in c.messages)
    ]
    by_side = {s: [c for c in imported if c.split == s] for s in ("validation", "test")}
    assert {s: len(found) for s, found in by_side.items()} == {"validation": 10, "test": 30}
    assert all(c.has_reference for found in by_side.values() for c in found)
    train = [c for c in imported if c.split == "train"]
    assert 10 <= sum(c.has_reference for c in train) <= PLAN.labelled < len(train)


def test_the_clean_sizes_are_exact_and_the_sets_apart() -> None:
    for setting in (REAL, QUICK):
        for plan in (setting.tickets, setting.choosing):
            drawn = draw(plan)
            sizes = [len(drawn.of(s)) for s in ("train", "validation", "test")]
            assert sizes == [plan.train, plan.validation, plan.test]
            assert len(drawn.tune) == plan.tune
            assert len(drawn.referenced) == plan.labelled + plan.validation + plan.test
            groups = [c.group for c in (*drawn.tune, *drawn.traffic)]
            assert len(groups) == len(set(groups))
        tested = {c.group for c in draw(setting.tickets).of("test")}
        chosen_on = draw(setting.choosing)
        assert tested.isdisjoint(c.group for c in (*chosen_on.tune, *chosen_on.traffic))


def test_the_three_runs_differ_in_nothing_but_what_they_learn_from() -> None:
    for setting in (REAL, QUICK):
        runs = setting.seeded(7)
        assert len({r.schedule for r in runs.values()}) == 1
        assert len({r.trainable for r in runs.values()}) == 1
        assert {r.seed for r in runs.values()} == {7}
        assert runs["distilled"].objective.needs_teacher
        assert runs["sequence_level"].objective.ce_target == "logged"
        assert runs["labels_only"].objective.ce_target == "reference"


def test_the_same_seed_gives_the_same_tickets() -> None:
    first, again = (list(made_tickets(30, seed=5)) for _ in range(2))
    assert first == again
    assert first != list(made_tickets(30, seed=6))
    avoided = frozenset(c.group for c in first[:10])
    assert avoided.isdisjoint(c.group for c in made_tickets(30, seed=5, avoid=avoided))


def test_the_tuning_file_teaches_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "tune.jsonl"
    write_tuning(path, draw(PLAN).tune)
    lines = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert len(lines) == PLAN.tune
    assert all(
        set(json.loads(m[-1]["content"])) == {"intent", "item", "order", "priority"} for m in lines
    )
    funnel = import_files([path], out_dir=tmp_path / "out", test_share=0.0)
    assert (funnel.format, funnel.conversations) == ("openai_finetune", PLAN.tune)
