"""Capturing a teacher: rows against dense logits, a fixed plan, resuming, and faithfulness."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from app.specs.teacher import CacheSpace, CaptureProfile
from tests.workers.distill.conftest import make_model
from workers.distill import capture as core
from workers.distill.callbacks import Silent
from workers.distill.capture import capture, check_faithfulness, plan_capture
from workers.distill.errors import CheckpointError, HeadError, MissingRowsError
from workers.distill.heads import split_head
from workers.distill.losses.dense import dense_bucket
from workers.distill.rendering import entry_of
from workers.distill.teacher_rows import decode
from workers.distill.teacher_shards import ShardLookup
from workers.distill.teachers import LocalTeacher
from workers.distill.values import RenderedConversation, SparseTargets

V, PADDED = 390, 400
PROFILE = CaptureProfile(k_max=16)
SPACE = CacheSpace(
    weights_fingerprint="a" * 64, tokenizer_fingerprint="b" * 64, vocabulary=V, profile=PROFILE
)


def talk(number: int, length: int) -> RenderedConversation:
    ids = np.random.default_rng(number).integers(0, V, length).astype(np.int32)
    mask = np.zeros(length, dtype=np.bool_)
    mask[1:] = True
    return RenderedConversation(f"c{number}", "g", ids, mask, entry_of(ids))


TALKS = [talk(i, 5 + 3 * (i % 9)) for i in range(24)]


class Recorder(Silent):
    """Keeps what is published; asks to stop after `stop_after` questions."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.published: list[Mapping[str, Any]] = []
        self.asked = 0
        self.stop_after = stop_after

    def publish(self, payload: Mapping[str, Any]) -> None:
        self.published.append(payload)

    def should_stop(self) -> bool:
        self.asked += 1
        return self.stop_after is not None and self.asked > self.stop_after

    @property
    def shards(self) -> list[str]:
        return [p["shard"] for p in self.published]

    @property
    def entries(self) -> list[str]:
        return [e["entry"] for p in self.published for e in p["entries"]]


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return LocalTeacher(make_model(PADDED), V, chunk=7)


def test_rows_equal_dense_log_probabilities(teacher: LocalTeacher) -> None:
    batch = [t.input_ids for t in TALKS[:5]]
    for ids, rows in zip(batch, teacher.capture(batch, PROFILE), strict=True):
        with torch.no_grad():
            whole = teacher._model(torch.from_numpy(ids[None]).long()).logits[0, :-1, :V].double()
        log_p = torch.log_softmax(whole, -1)
        assert rows.ids.shape == (len(ids) - 1, 16)
        for t in range(len(ids) - 1):
            head = rows.ids[t][rows.ids[t] >= 0]
            assert head.tolist() == log_p[t].topk(len(head)).indices.tolist()
            assert np.allclose(rows.logp[t][: len(head)], log_p[t, head].numpy(), atol=1e-4)
            mass = log_p[t, head].exp()
            needed = int((mass.cumsum(0) < PROFILE.head_mass).sum()) + 1
            assert len(head) == min(max(needed, PROFILE.k_min), PROFILE.k_max)
            for g, temperature in enumerate(PROFILE.temperatures):
                at = torch.log_softmax(whole[t] / temperature, -1)
                at[head] = -torch.inf
                assert rows.log_r[t, g] == pytest.approx(at.logsumexp(0).item(), abs=1e-3)
            entropy = -(log_p[t].exp() * log_p[t]).sum().item()
            assert rows.entropy[t] == pytest.approx(entropy, abs=1e-4)


def test_a_head_as_wide_as_the_vocabulary_leaves_no_residual() -> None:
    wide = CaptureProfile(k_max=500, k_min=500)
    rows = LocalTeacher(make_model(PADDED), V).capture([TALKS[3].input_ids], wide)[0]
    assert rows.ids.shape[1] == V
    assert np.isneginf(rows.log_r).all()


def test_a_conversation_of_one_token_has_no_rows(teacher: LocalTeacher) -> None:
    rows = teacher.capture([np.array([3], dtype=np.int32)], PROFILE)[0]
    assert rows.ids.shape == (0, 16)
    assert rows.log_r.shape == (0, 3)


def test_plan_is_fixed_and_holds_every_entry_once() -> None:
    planned = plan_capture([*TALKS, *TALKS[:5]], shard_rows=60, batch_tokens=40)
    assert planned == plan_capture(TALKS[::-1], shard_rows=60, batch_tokens=40)
    entries = [e for shard in planned for e in shard.entries]
    assert sorted(entries) == sorted(t.entry for t in TALKS)
    lengths = {t.entry: len(t.input_ids) for t in TALKS}
    for shard in planned:
        assert sum(lengths[e] - 1 for e in shard.entries) <= 60
        for batch in shard.batches:
            assert len(batch) == 1 or len(batch) * max(lengths[e] for e in batch) <= 40
    assert plan_capture([], shard_rows=60) == ()


def run(
    teacher: LocalTeacher, folder: Path, *, cached: tuple[str, ...] = (), stop: int | None = None
) -> tuple[Any, Recorder]:
    seen = Recorder(stop)
    report, _ = capture(
        TALKS, teacher, SPACE, folder=folder, callbacks=seen, cached=cached, shard_rows=60
    )
    return report, seen


def test_capture_publishes_every_shard_and_reports(tmp_path: Path, teacher: LocalTeacher) -> None:
    report, seen = run(teacher, tmp_path)
    assert sorted(seen.entries) == sorted(t.entry for t in TALKS)
    assert all(p["space"] == SPACE.address for p in seen.published)
    assert report.new_rows == report.rows == sum(len(t.input_ids) - 1 for t in TALKS)
    assert report.new_entries == report.entries == 24
    assert report.bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    mass = report.captured_mass
    assert 1 > mass["1"] > mass["2"] > mass["4"] > 0
    assert report.mean_entropy > 0
    with ShardLookup(list(tmp_path.iterdir()), PROFILE.temperatures) as lookup:
        rows = lookup.rows([t.entry for t in TALKS])
    assert [len(r.ids) for r in rows if r] == [len(t.input_ids) - 1 for t in TALKS]


def test_resume_loses_only_the_shard_in_hand_and_gives_the_same_bytes(
    tmp_path: Path, teacher: LocalTeacher
) -> None:
    _, whole = run(teacher, tmp_path / "whole")
    stopped_report, stopped = run(teacher, tmp_path / "part", stop=3)
    assert 0 < len(stopped.shards) < len(whole.shards)
    assert stopped_report.new_entries == len(stopped.entries)
    assert stopped_report.missing_entries == stopped_report.entries - len(stopped.entries)
    assert stopped_report.missing_rows == stopped_report.rows - stopped_report.new_rows > 0
    report, resumed = run(teacher, tmp_path / "part", cached=tuple(stopped.entries))
    assert stopped.shards + resumed.shards == whole.shards
    assert not set(resumed.entries) & set(stopped.entries)
    assert report.entries == 24
    again, nothing = run(teacher, tmp_path / "part", cached=tuple(whole.entries))
    assert (nothing.shards, again.new_rows) == ([], 0)


def test_faithful_and_unfaithful_caches(tmp_path: Path, teacher: LocalTeacher) -> None:
    run(teacher, tmp_path)
    shards = list(tmp_path.iterdir())
    found = check_faithfulness(TALKS, teacher, PROFILE, shards)
    assert found.passed
    assert found.tokens > 40
    assert abs(found.live_live) < 1e-5
    assert 0 < found.stored_live < 1e-3
    other = LocalTeacher(make_model(PADDED, seed=1), V)
    wrong = check_faithfulness(TALKS, other, PROFILE, shards)
    assert not wrong.passed
    assert "not faithful" in wrong.sentence
    with pytest.raises(MissingRowsError, match="lacks"):
        check_faithfulness([talk(99, 6)], teacher, PROFILE, shards)


def test_the_check_of_a_long_conversation_is_bounded(
    tmp_path: Path, teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 700 tokens the first 512 are compared, 64 at a time, with what the whole text gives."""
    long = talk(7, 700)
    capture([long], teacher, SPACE, folder=tmp_path, callbacks=Silent())
    shards = list(tmp_path.iterdir())
    [live] = teacher.log_probs([long.input_ids])
    with ShardLookup(shards, PROFILE.temperatures) as lookup:
        [stored] = lookup.rows([long.entry])
    assert stored is not None
    targets = decode(stored.take(slice(0, 511)), 1.0, PROFILE.temperatures)
    expected = float(dense_bucket(live[:511], targets).sum()) / 511
    shapes: list[tuple[int, ...]] = []

    def seen(logits: torch.Tensor, rows: SparseTargets) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return dense_bucket(logits, rows)

    monkeypatch.setattr(core, "dense_bucket", seen)
    found = check_faithfulness([long], teacher, PROFILE, shards)
    assert found.passed
    assert found.tokens == 511
    assert found.stored_live == pytest.approx(expected, rel=1e-3)
    assert sorted(set(shapes)) == [(63, V), (64, V)]


def test_log_probabilities_in_chunks_are_the_whole_ones(teacher: LocalTeacher) -> None:
    batch = [TALKS[0].input_ids, TALKS[8].input_ids]
    whole = list(teacher.log_probs(batch))
    parts = list(teacher.log_probs(batch, chunk=9))
    assert [len(w) for w in whole] == [4, 28]
    assert [len(p) for p in parts] == [4, 9, 9, 9, 1]
    torch.testing.assert_close(torch.cat(parts), torch.cat(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["norm", "head"])
def test_a_damaged_teacher_is_named_at_its_first_batch(tmp_path: Path, where: str) -> None:
    model = make_model(PADDED)
    with torch.no_grad():
        weight = model.model.norm.weight if where == "norm" else model.lm_head.weight[5]
        weight.fill_(torch.nan)
    seen = Recorder()
    with pytest.raises(CheckpointError, match=r"not finite: its weights are damaged\. Register"):
        capture(
            TALKS, LocalTeacher(model, V), SPACE, folder=tmp_path, callbacks=seen, shard_rows=60
        )
    assert (seen.asked, seen.published) == (1, [])


def test_heads_that_do_more_than_one_product_are_refused() -> None:
    model = make_model(PADDED)
    assert split_head(model).weight is model.lm_head.weight
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(HeadError, match="final_logit_softcapping"):
        split_head(model)
    biased = make_model(PADDED)
    biased.lm_head.bias = torch.nn.Parameter(torch.zeros(PADDED))
    with pytest.raises(HeadError, match="has a bias"):
        LocalTeacher(biased, V)


class Scaled(LlamaForCausalLM):
    """Multiplies its logits in `forward`, as FalconH1 does, and names that nowhere we look."""

    factor = 0.05

    def forward(self, *args: Any, **names: Any) -> Any:
        output = super().forward(*args, **names)
        output.logits = output.logits * self.factor
        return output


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_logits_that_are_scaled_outside_the_head_are_refused(kind: torch.dtype) -> None:
    model = Scaled(make_model(PADDED).config).to(kind)
    with pytest.raises(HeadError, match="of Scaled are not its head times its last hidden states"):
        split_head(model)
    model.factor = 1.0
    assert split_head(model).weight is model.lm_head.weight


def test_splitting_a_head_leaves_mode_chance_and_gradients_alone() -> None:
    model = make_model(PADDED)
    model.config.attention_dropout = 0.5
    model.train()
    model.model.norm.eval()
    for part in model.modules():
        if hasattr(part, "attention_dropout"):
            part.attention_dropout = 0.5
    modes, chance = [p.training for p in model.modules()], torch.get_rng_state()
    split_head(model)
    assert [p.training for p in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(p.grad is None for p in model.parameters())


def test_cut_conversations_share_rows_by_entry() -> None:
    first = talk(1, 8)
    twin = replace(first, conversation_id="other")
    assert len(plan_capture([first, twin], shard_rows=60)[0].entries) == 1


@pytest.mark.parametrize("workers", [2, 3, 9])
def test_shares_make_together_the_shards_that_one_worker_makes(
    teacher: LocalTeacher, tmp_path: Path, workers: int
) -> None:
    whole, alone = capture(
        TALKS, teacher, SPACE, folder=tmp_path / "one", callbacks=Silent(), shard_rows=60
    )
    made, rows, entries = [], 0, 0
    for n in range(workers):
        seen = Recorder()
        report, files = capture(
            TALKS,
            teacher,
            SPACE,
            folder=tmp_path / "many",
            callbacks=seen,
            shard_rows=60,
            share=(n, workers),
        )
        made += [f.sha256 for f in files]
        rows, entries = rows + report.new_rows, entries + report.entries
        assert (report.missing_rows, report.entries) == (0, report.new_entries)
    assert sorted(made) == sorted(f.sha256 for f in alone)
    assert (rows, entries) == (whole.new_rows, whole.entries)
