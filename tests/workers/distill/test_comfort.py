"""Less memory with the same numbers; failures that name the mend and keep what was done."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from app.specs.training import Objective, TrainingSpec
from tests.workers.distill import tiny
from tests.workers.distill.test_packing import tiny_of
from tests.workers.distill.test_selection import RIGHT, Impatient, answers
from tests.workers.distill.test_trainer import HELD_OUT, ITEMS, ROWS, Recorder, run, spec
from workers.distill import checkpointing
from workers.distill.batches import BatchSource
from workers.distill.checkpointing import snapshot_folders
from workers.distill.checkpoints import published, state_sha256
from workers.distill.disk import full_sentence, is_full
from workers.distill.errors import (
    ContextLengthError,
    DiskFullError,
    NonFiniteLossError,
    PackingError,
)
from workers.distill.selection import Selection, Validation
from workers.distill.stepping import Stepper
from workers.tasks.validating import require_context


def with_checkpointing(what: TrainingSpec) -> TrainingSpec:
    return what.model_copy(update={"gradient_checkpointing": True})


class Kept:
    """Bytes that a forward pass keeps for its backward pass, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor


def gradients(what: TrainingSpec, *, top: int | None = None) -> tuple[float, torch.Tensor, int]:
    """Return loss, gradient and kept bytes of a step of a model without dropout."""
    model, kept = tiny.llama(layers=4).train(), Kept()
    trainable = what.trainable.model_copy(update={"top_layers": top})
    stepper = Stepper(model, what.model_copy(update={"trainable": trainable}))
    step = BatchSource(ITEMS, ROWS, what.objective, what.schedule, 0).step(0)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        sums = stepper.forward(step.micro[0], step.denominator)
    sums.loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    gradient = torch.cat([p.grad.flatten() for p in stepper.parameters if p.grad is not None])
    return float(sums.loss.detach()), gradient, sum(kept.storages.values())


@pytest.mark.parametrize("top", [None, 2])
def test_checkpointed_layers_give_the_same_bits_for_less_memory(top: int | None) -> None:
    loss, gradient, kept = gradients(spec(), top=top)
    again, other, less = gradients(with_checkpointing(spec()), top=top)
    assert again == loss
    assert torch.equal(other, gradient)
    assert less < (0.5 if top is None else 0.7) * kept


def test_a_whole_training_with_checkpointing_has_the_same_bits(tmp_path: Path) -> None:
    result, plain = run(tmp_path / "plain", spec())
    other, model = run(tmp_path / "less", with_checkpointing(spec()))
    assert state_sha256(model) == state_sha256(plain)
    assert (other.best_step, other.best_value) == (result.best_step, result.best_value)


def everything(**more: Any) -> TrainingSpec:
    """Return a spec with all that may be turned on."""
    values = {"steps": 8, "validate_every": 2, "packing": True, "micro_batch_size": 3} | more
    return with_checkpointing(spec(**values))


def test_resumed_equals_uninterrupted_with_everything_on(tmp_path: Path) -> None:
    def judging() -> Validation:
        by = Selection(metric=RIGHT, label="exact match", higher=True, patience=3)
        return Validation([HELD_OUT], by, answers(4))

    points, first, second = Recorder(), Recorder(stop_after=3), Recorder()
    whole, whole_model = run(tmp_path / "whole", everything(), points, judging=judging())
    half, _ = run(tmp_path / "half", everything(), first, judging=judging())
    # Nothing is answered right, so only the first of four validations improves.
    assert (half.steps, whole.steps, whole.ending) == (3, 8, "steps")
    left = tmp_path / "half" / "snapshots"
    resumed, model = run(
        tmp_path / "half", everything(), second, judging=judging(), resume=left, seed=7
    )
    assert state_sha256(model) == state_sha256(whole_model)
    assert (resumed.steps, resumed.ending) == (whole.steps, whole.ending)
    joined = first.points | second.points
    for step, values in points.points.items():
        for name in ("train/loss", "train/kd_loss", "optim/grad_norm"):
            assert joined[step][name] == values[name]


def test_a_packed_training_has_the_losses_of_the_unpacked(tmp_path: Path) -> None:
    plain, packed = Recorder(), Recorder()
    _, one = run(tmp_path / "plain", spec(steps=3), plain)
    _, other = run(tmp_path / "packed", spec(steps=3, packing=True), packed)
    for step in (1, 2, 3):
        expected = plain.points[step]
        for name in ("train/loss", "train/kd_loss", "train/ce_loss", "data/tokens"):
            assert packed.points[step][name] == pytest.approx(expected[name], rel=1e-5), name
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=2e-5)


def test_a_type_that_cannot_be_packed_is_refused_before_a_step() -> None:
    model = tiny_of("stablelm")
    what = spec(packing=True)
    with pytest.raises(PackingError, match=r"of type stablelm\. Turn packing off"):
        Stepper(model, what)
    assert Stepper(model, spec()).parameters


def test_numbers_that_are_not_finite_name_step_cause_and_what_is_kept(tmp_path: Path) -> None:
    wild = spec(learning_rate=10.0, warmup_steps=0, max_grad_norm=1e9, steps=60)
    what = wild.model_copy(update={"objective": Objective(kind="ce", alpha=0.0)})
    poisoned = BatchSource(ITEMS, None, what.objective, what.schedule, 0)

    class Poisoned(BatchSource):
        def step(self, number: int) -> Any:
            found = poisoned.step(number)
            if number != 4:
                return found
            infinite = torch.full_like(found.micro[0].alpha, -torch.inf)
            return replace(found, micro=(replace(found.micro[0], alpha=infinite),))

    from workers.distill.trainer import train  # noqa: PLC0415 - the one test that brings batches

    with pytest.raises(NonFiniteLossError) as raised:
        train(
            tiny.llama(),
            Poisoned(ITEMS, None, what.objective, what.schedule, 0),
            what,
            callbacks=Recorder(),
            workdir=tmp_path,
            tokenizer=tiny.tokenizer(),
        )
    text = str(raised.value)
    assert text.startswith("Step 5: the loss is ")
    assert "Likely the steps have become too long. Lower the learning rate (no" in text
    assert "The snapshot of step 4 is kept" in text
    assert snapshot_folders(tmp_path / "snapshots")[0].name == "step-00000004"


def fill(monkeypatch: pytest.MonkeyPatch, error: Exception, after: int) -> None:
    """Let the disk be full from the n-th weights on."""
    written, whole = [0], checkpointing.save_weights

    def save(model: Any, path: Path) -> None:
        written[0] += 1
        if written[0] > after:
            path.write_bytes(b"half")
            raise error
        whole(model, path)

    monkeypatch.setattr(checkpointing, "save_weights", save)


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
)


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_names_the_place_and_the_room_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    whole, expected = run(tmp_path / "whole", spec(validate_every=100), validated=False)
    with monkeypatch.context() as patch:
        fill(patch, error, after=1)
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
        with pytest.raises(DiskFullError) as raised:
            run(tmp_path / "half", spec(validate_every=100), validated=False)
    words = "/half/snapshots is full: free 64 MiB there, then Try again; what was done is kept."
    assert str(raised.value).endswith(words)
    left = tmp_path / "half" / "snapshots"
    assert [p.name for p in left.iterdir()] == ["step-00000002"], "nothing half is left"
    resumed, model = run(
        tmp_path / "half", spec(validate_every=100), resume=left, seed=3, validated=False
    )
    assert resumed.steps == whole.steps
    assert state_sha256(model) == state_sha256(expected)


def test_what_says_that_a_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_full(None)
    named = ValueError("could not be written")
    named.__cause__ = FULL[0]
    assert is_full(named)
    # 1 GiB to write and 64 MiB beside, of which 100 are there; asked of the folder that exists.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))
    assert full_sentence(Path("/none/of/it"), 1 << 30).startswith("The disk of / is full: free 988")


def test_another_failure_of_writing_stays_what_it_is(tmp_path: Path) -> None:
    def write() -> None:
        with published(tmp_path / "made"):
            raise PermissionError("no")

    with pytest.raises(PermissionError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_conversation_longer_than_the_context_is_refused_by_name() -> None:
    model = tiny.llama()
    require_context(model, ITEMS)
    longest = max(ITEMS, key=lambda item: len(item.input_ids))
    size = len(longest.input_ids)
    model.config.max_position_embeddings = size
    require_context(model, ITEMS)
    model.config.max_position_embeddings = size - 1
    words = rf"{longest.conversation_id} has {size} tokens, and the student reads {size - 1}\. Set"
    with pytest.raises(ContextLengthError, match=words):
        require_context(model, ITEMS)


def test_a_stop_is_heard_within_answers() -> None:
    """The double of the tests above: without it they would show nothing."""
    assert [Impatient().should_stop() for _ in range(2)] == [False, False]
