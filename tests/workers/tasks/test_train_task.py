"""What a training is validated on when the held-out part has nothing to learn from."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from app.specs.training import RenderSpec
from tests.workers.distill import tiny
from tests.workers.tasks.test_teaching import Heard
from tests.workers.tasks.test_train_ranks import conversations, inputs_of
from workers.distill.callbacks import Silent
from workers.distill.checkpointing import MODEL, snapshot_folder
from workers.distill.checkpoints import load_model
from workers.distill.rendering import Renderer
from workers.job.task import BodyContext
from workers.tasks.left_out import tell
from workers.tasks.precompute import read_by_a_run
from workers.tasks.train import TrainTask
from workers.tasks.validating import held_out_of


def test_a_part_without_a_label_is_not_validated_and_trains_all_the_same() -> None:
    heard = Heard()
    labels = Renderer(tiny.tokenizer(), RenderSpec(max_tokens=256, answer="reference"))
    turns = tiny.tickets(3)
    bare = [
        c.model_copy(
            update={"messages": tuple(m.model_copy(update={"reference": None}) for m in c.messages)}
        )
        for c in turns
    ]

    assert held_out_of(labels, bare, heard) == ()
    [line] = heard.lines
    assert line.startswith("Not validated, so the last weights are kept, not the best. None of 3")
    assert held_out_of(labels, [], heard) == ()
    logged = Renderer(tiny.tokenizer(), RenderSpec(max_tokens=256))
    assert len(held_out_of(logged, bare, heard)) == len(bare)
    assert len(heard.lines) == 1


def test_what_is_left_out_or_cut_is_told() -> None:
    heard = Heard()
    turns = tiny.tickets(6)
    long = turns[0].model_copy(update={"messages": turns[0].messages * 3})
    longest = max(len(r.input_ids) for r in tiny.rendered(turns))
    short = Renderer(tiny.tokenizer(), RenderSpec(max_tokens=longest))
    tell(short.render_all([*turns, long]), heard)
    assert heard.lines == [
        "1 conversation too long: their oldest turns were cut, 6 messages in all."
    ]
    heard.lines.clear()
    lengths = sorted(len(r.input_ids) for r in tiny.rendered(turns))
    shorter = Renderer(tiny.tokenizer(), RenderSpec(max_tokens=lengths[0]))
    left = sum(length > lengths[0] for length in lengths)
    tell(shorter.render_all(turns), heard)
    assert heard.lines == [f"{left} conversations left out: too long."]


class Stopping(Silent):
    """Asks to stop once a later step validates worse than an earlier one."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def metrics(self, step: int, values: Any) -> None:
        if "validation/loss" in values:
            self.losses[step] = values["validation/loss"]

    def should_stop(self) -> bool:
        return len(self.losses) > 2 and list(self.losses.values())[-1] > min(self.losses.values())


def test_a_stopped_training_keeps_the_best_so_far(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    schedule = {"ranks": 1, "packing": False, "validate_every": 1, "snapshot_every": 1000}
    spec = inputs.job.run.training
    fast = spec.schedule.model_copy(update={**schedule, "learning_rate": 0.05, "warmup_steps": 0})
    run = inputs.job.run.model_copy(update={"training": spec.model_copy(update={"schedule": fast})})
    job = inputs.job.model_copy(update={"run": run})
    calls: Any = Stopping()
    context = BodyContext(tmp_path / "work", tmp_path, (), calls)
    context.workdir.mkdir()

    found = TrainTask().run(inputs.model_copy(update={"job": job}), context)

    best = min(calls.losses, key=calls.losses.__getitem__)
    assert best < found["steps"]
    assert (found["step"], found["best"]) == (best, True)
    kept = load_model(Path(found["folder"])).state_dict()
    snapshot = load_file(str(snapshot_folder(context.workdir / "snapshots", best) / MODEL))
    for name, weight in snapshot.items():
        assert torch.equal(kept[name], weight)


def test_what_is_captured_is_what_a_run_reads() -> None:
    made = conversations()
    rendered = tiny.rendered(made)
    validated = {c.id for c in made if c.split == "validation"}
    found = read_by_a_run(rendered, made, 5)
    training = [r for r in rendered if r.conversation_id not in validated]
    assert [r for r in found if r.conversation_id not in validated] == training[:5]
    assert {r.conversation_id for r in found} >= validated
    assert read_by_a_run(rendered, made, None) == list(rendered)
