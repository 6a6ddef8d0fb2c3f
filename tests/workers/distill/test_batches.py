"""Labels shifted once, targets joined by entry, and steps that do not depend on how they split."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from app.specs.training import Objective, Schedule
from tests.workers.distill.conftest import make_model
from workers.distill.batches import BatchSource, Collator, StepBatches
from workers.distill.errors import (
    MissingRowsError,
    NothingToTrainError,
    RowCountError,
    TemperatureError,
)
from workers.distill.heads import split_head
from workers.distill.losses.fused import fused_loss
from workers.distill.rendering import entry_of
from workers.distill.values import RenderedConversation, StudentBatch, TargetRows

V = 50
GRID = (1.0, 2.0)
KD = Objective(temperature=2.0, alpha=0.7)
CE = Objective(kind="ce", alpha=0.0)


def talk(number: int, length: int, mask: Sequence[int] | None = None) -> RenderedConversation:
    ids = np.random.default_rng(number).integers(0, V, length).astype(np.int32)
    target_mask = np.zeros(length, dtype=np.bool_)
    target_mask[list(mask) if mask is not None else range(length // 2, length)] = True
    return RenderedConversation(f"c{number}", "g", ids, target_mask, entry_of(ids))


class Rows:
    """Rows that a hash of (entry, position) decides: whoever joins otherwise is found out."""

    grid = GRID

    def __init__(self, *, without: Sequence[str] = (), short: bool = False) -> None:
        self._lengths: dict[str, int] = {}
        self._without = set(without)
        self._short = short

    def know(self, rendered: Sequence[RenderedConversation]) -> "Rows":
        self._lengths = {r.entry: len(r.input_ids) for r in rendered}
        return self

    def rows(self, entries: Sequence[str]) -> list[TargetRows | None]:
        return [None if e in self._without else self._rows(e) for e in entries]

    def _rows(self, entry: str) -> TargetRows:
        count = self._lengths[entry] - 1 - self._short
        ids = np.array([[first_id(entry, t), (first_id(entry, t) + 1) % V] for t in range(count)])
        return TargetRows(
            ids=ids.reshape(count, 2),
            logp=np.tile(np.log(np.float32([0.6, 0.3])), (count, 1)),
            log_r=np.tile(np.log(np.float32([0.1, 0.3])), (count, 1)),
            entropy=np.zeros(count, dtype=np.float32),
        )


def first_id(entry: str, position: int) -> int:
    return hashlib.sha256(f"{entry}{position}".encode()).digest()[0] % V


TALKS = [talk(i, 4 + i % 7) for i in range(13)]


def source(
    schedule: Schedule, objective: Objective = KD, rendered: Sequence[RenderedConversation] = TALKS
) -> BatchSource:
    return BatchSource(rendered, Rows().know(rendered), objective, schedule, 5)


def test_labels_are_the_next_ids_and_rows_belong_to_the_same_position() -> None:
    one, two = talk(1, 6, [1, 2, 5]), talk(2, 3, [2])
    batch = Collator(Rows().know([one, two]), KD)([one, two])
    assert batch.positions.tolist() == [0, 1, 4, 6 + 1]
    assert batch.labels.tolist() == [*one.input_ids[[1, 2, 5]], two.input_ids[2]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.input_ids[1].tolist() == [*two.input_ids, 0, 0, 0]
    assert batch.teacher is not None
    expected = [first_id(one.entry, t) for t in (0, 1, 4)] + [first_id(two.entry, 1)]
    assert batch.teacher.ids[:, 0].tolist() == expected
    assert torch.allclose(batch.teacher.log_r.exp(), torch.tensor(0.3))
    assert batch.target_tokens == 4


def test_first_and_last_target_are_supervised_and_position_zero_never_is() -> None:
    one = talk(3, 5, [0, 1, 4])
    batch = Collator(None, CE)([one])
    assert batch.positions.tolist() == [0, 3]
    assert batch.labels.tolist() == one.input_ids[[1, 4]].tolist()


def test_alpha_is_zero_where_only_a_label_exists() -> None:
    one, two = talk(1, 6), talk(2, 4)
    lookup = Rows(without=[two.entry]).know([one, two])
    batch = Collator(lookup, KD)([two, one])
    count = int(two.target_mask.sum())
    assert batch.alpha.tolist() == pytest.approx([0.0] * count + [0.7] * 3)
    assert batch.teacher is not None
    assert torch.isneginf(batch.teacher.log_w[:count]).all()
    alone = Collator(lookup, KD)([two])
    assert torch.isfinite(step_loss(StepBatches(0, (alone,), count, ("c",))))


def test_refusals_are_named() -> None:
    with pytest.raises(MissingRowsError, match="no teacher cache was given"):
        BatchSource(TALKS, None, KD, Schedule(), 0)
    everything = Rows(without=[t.entry for t in TALKS]).know(TALKS)
    with pytest.raises(MissingRowsError, match="none of the 13 conversations"):
        BatchSource(TALKS, everything, KD, Schedule(), 0)
    some = Rows(without=[TALKS[2].entry]).know(TALKS)
    assert BatchSource(TALKS, some, KD, Schedule(), 0).missing_entries == 1
    with pytest.raises(RowCountError, match="Capture it again"):
        Collator(Rows(short=True).know(TALKS), KD)(TALKS[:1])
    with pytest.raises(TemperatureError, match="captured at T = 1, 2"):
        source(Schedule(), Objective(temperature=3.0))
    with pytest.raises(NothingToTrainError):
        BatchSource([talk(1, 5, [])], None, CE, Schedule(), 0)


def test_every_conversation_once_an_epoch_in_seeded_order() -> None:
    steps = list(source(Schedule(steps=13, batch_size=2)))
    names = [n for s in steps for n in s.conversations]
    assert sorted(names[:13]) == sorted(names[13:]) == sorted(t.conversation_id for t in TALKS)
    assert names[:13] != names[13:]
    again = [n for s in source(Schedule(steps=13, batch_size=2)) for n in s.conversations]
    other = BatchSource(TALKS, None, CE, Schedule(steps=13, batch_size=2), 6)
    assert again == names
    assert [n for s in other for n in s.conversations] != names


def test_resume_from_a_cursor_gives_the_same_steps() -> None:
    whole = list(source(Schedule(steps=9, batch_size=4, micro_batch_size=3)))
    resumed = source(Schedule(steps=9, batch_size=4, micro_batch_size=3))
    resumed.cursor = 6
    for old, new in zip(whole[6:], resumed, strict=True):
        assert old.conversations == new.conversations
        for a, b in zip(old.micro, new.micro, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.labels, b.labels)
    assert resumed.cursor == 9


def step_loss(step: StepBatches) -> torch.Tensor:
    return sum((micro_loss(b, step.denominator) for b in step.micro), torch.zeros(()).double())


MODEL = make_model(V).double()


def micro_loss(batch: StudentBatch, denominator: float) -> torch.Tensor:
    head = split_head(MODEL)
    hidden = head.hidden(batch.input_ids, batch.attention_mask, batch.documents)
    return fused_loss(
        hidden.reshape(-1, hidden.shape[-1])[batch.positions],
        head.weight,
        labels=batch.labels,
        alpha=batch.alpha,
        teacher=batch.teacher,
        denominator=denominator,
        chunk=8,
    ).loss


def gradient(loss: torch.Tensor) -> torch.Tensor:
    MODEL.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in MODEL.parameters()])


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_one_batch_of_eight_equals_its_micro_batches(micro: int) -> None:
    whole = source(Schedule(steps=1, batch_size=8)).step(0)
    split = source(Schedule(steps=1, batch_size=8, micro_batch_size=micro)).step(0)
    assert whole.denominator == split.denominator == sum(b.target_tokens for b in split.micro)
    assert len(split.micro) == -(-8 // micro)
    one, many = step_loss(whole), step_loss(split)
    torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(one), gradient(many), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 11])
def test_the_shares_of_ranks_add_up_to_the_whole_step(ranks: int, *, packing: bool) -> None:
    """The denominator of a share is the step's; eleven ranks have not all something to do."""
    schedule = Schedule(steps=1, batch_size=8, packing=packing, micro_batch_size=2)
    whole = source(schedule).step(0)
    shares = []
    for rank in range(ranks):
        dealt = source(schedule)
        dealt.share = (rank, ranks)
        shares.append(dealt.step(0))
    assert {s.denominator for s in shares} == {whole.denominator}
    assert {s.conversations for s in shares} == {whole.conversations}
    assert sum(b.target_tokens for s in shares for b in s.micro) == whole.denominator
    assert max(len(s.micro) for s in shares) - min(len(s.micro) for s in shares) <= 1
    lost = sum((step_loss(s) for s in shares), torch.zeros(()).double())
    torch.testing.assert_close(lost, step_loss(whole), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(lost), gradient(step_loss(whole)), rtol=1e-7, atol=1e-9)


def test_shuffling_the_set_changes_no_token_of_any_conversation() -> None:
    """Rows are joined by entry: whatever the order, a conversation meets its own targets."""

    def by_conversation(rendered: Sequence[RenderedConversation]) -> dict[str, float]:
        found = {}
        for step in source(Schedule(steps=13, batch_size=1), rendered=rendered):
            found[step.conversations[0]] = step_loss(step).item()
        return found

    straight, shuffled = by_conversation(TALKS), by_conversation(TALKS[::-1])
    assert straight.keys() == shuffled.keys()
    for name, value in straight.items():
        assert shuffled[name] == pytest.approx(value, rel=1e-9)


def test_a_step_without_any_target_is_zero_and_not_nan() -> None:
    silent = talk(1, 5, [])
    for batch in (Collator(None, CE)([silent]), Collator(Rows().know([silent]), KD)([silent])):
        loss = micro_loss(batch, 0)
        assert loss.item() == 0
        assert gradient(loss).abs().max().item() == 0
