"""The profiles beside `standard`: samples of the rest, wide heads, and rows that are everything."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.specs.teacher import AUDIT_HEAD, MOST_HEAD, CacheSpace, CaptureProfile, ProfileName
from app.specs.training import Objective
from tests.workers.distill.conftest import make_model
from tests.workers.distill.test_capture import TALKS, V
from workers.distill.batches import Collator
from workers.distill.callbacks import Silent
from workers.distill.capture import capture, check_faithfulness
from workers.distill.errors import TemperatureError
from workers.distill.teacher_rows import decode, decode_frames, encode_rows, join_rows
from workers.distill.teacher_shards import ShardLookup
from workers.distill.teachers import LocalTeacher, _samples
from workers.distill.values import TargetRows

GRID = (1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def teacher() -> LocalTeacher:
    return LocalTeacher(make_model(400), V, chunk=7)


def log_p(teacher: LocalTeacher, ids: Any) -> torch.Tensor:
    return next(iter(teacher.log_probs([ids])))


def profile(name: ProfileName, **values: Any) -> CaptureProfile:
    return CaptureProfile(name=name, **values)


def test_a_name_stands_for_what_is_kept() -> None:
    assert CaptureProfile() == profile("standard", k_min=4, k_max=32)
    assert profile("sampled").tail_samples == 8
    assert (profile("audit").k_min, profile("audit").value_bytes) == (AUDIT_HEAD, 2)
    assert profile("dense").k_max == MOST_HEAD
    assert profile("standard").value_bytes == profile("sampled").value_bytes == 1
    assert CaptureProfile.model_validate({"name": "audit"}) == profile("audit")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"tail_samples": 4}, "belong to the profile sampled"),
        ({"name": "sampled", "tail_samples": 0}, "needs at least 1"),
        ({"name": "audit", "k_min": 64}, "at least 256"),
        ({"name": "dense", "k_min": 300, "k_max": 300}, "keeps all tokens"),
        ({"k_min": 9, "k_max": 8}, "at most k_max"),
    ],
)
def test_what_contradicts_its_name_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CaptureProfile(**values)


def test_each_profile_is_a_space_of_its_own() -> None:
    names: tuple[ProfileName, ...] = ("standard", "sampled", "audit", "dense")
    spaces = {
        CacheSpace(
            weights_fingerprint="a",
            tokenizer_fingerprint="b",
            vocabulary=V,
            profile=CaptureProfile(name=n),
        ).address
        for n in names
    }
    assert len(spaces) == 4


def test_samples_lie_in_the_rest_and_share_all_of_it(teacher: LocalTeacher) -> None:
    rows = teacher.capture([TALKS[5].input_ids], profile("sampled", k_max=16))[0]
    assert rows.tail_ids is not None
    assert rows.tail_share is not None
    drawn = rows.tail_ids >= 0
    assert np.allclose(rows.tail_share.sum(1), 1)
    assert (rows.tail_share[~drawn] == 0).all()
    for head, tail, kept in zip(rows.ids, rows.tail_ids, drawn, strict=True):
        assert not set(tail[kept]) & set(head)
        assert len(set(tail[kept])) == kept.sum() >= 1
        assert kept[: kept.sum()].all()


def test_samples_are_those_of_the_entry_whatever_is_beside_it(teacher: LocalTeacher) -> None:
    batch = [TALKS[i].input_ids for i in (3, 8, 5)]
    together = teacher.capture(batch, profile("sampled"))[2]
    alone = teacher.capture(batch[2:], profile("sampled"))[0]
    assert together.tail_ids is not None
    assert (together.tail_ids == alone.tail_ids).all()


def test_shares_are_unbiased_and_systematic() -> None:
    """Over 400 offsets the mean share is the weight's, and none errs by a whole draw."""
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(1, 40, generator=g).double() ** 6
    weights[0, :5] = 0
    share = weights[0] / weights.sum()
    count, seeds = 8, 400
    offsets = torch.rand(seeds, generator=g, dtype=torch.float64)
    ids, drawn = _samples(weights.expand(seeds, -1), offsets, count)
    dense = torch.zeros(seeds, 40).scatter_add_(1, ids.clamp(min=0), drawn)
    dense[:, :5] = 0
    assert (dense.sum(1) - 1).abs().max().item() < 1e-6
    assert ((dense - share).abs() < 1 / count + 1e-6).all()
    fraction = (share * count).frac()  # a share is n draws or n + 1, by a coin of this chance
    error = (fraction * (1 - fraction)).sqrt() / count / math.sqrt(seeds) + 1e-9
    assert (((dense.mean(0) - share).abs() / error)[share > 0]).max().item() < 4


def test_nothing_is_sampled_of_nothing() -> None:
    ids, share = _samples(torch.zeros(2, 5), torch.tensor([0.1, 0.9]), 3)
    assert (ids == -1).all()
    assert (share == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 6),
    draws=st.integers(1, 64),
    vocabulary=st.sampled_from([300, 70_000]),
    value_bytes=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_samples_round_trip_exactly(
    count: int, draws: int, vocabulary: int, value_bytes: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, draws + 1, count)
    tail_ids = np.full((count, draws), -1, dtype=np.int64)
    share = np.zeros((count, draws), dtype=np.float32)
    for row, size in enumerate(sizes):
        tail_ids[row, :size] = rng.choice(np.arange(100, vocabulary), size, replace=False)
        parts = np.bincount(rng.integers(0, size, draws - size), minlength=size) + 1
        share[row, :size] = parts.astype(np.float32) / np.float32(draws)
    rows = TargetRows(
        ids=np.tile(np.arange(3), (count, 1)),
        logp=np.tile(np.float32([-0.5, -2, -3]), (count, 1)),
        log_r=np.full((count, 3), -1.0, dtype=np.float32),
        entropy=np.ones(count, dtype=np.float32),
        tail_ids=tail_ids,
        tail_share=share,
    )
    frame = encode_rows(rows, vocabulary=vocabulary, grid=GRID, value_bytes=value_bytes)
    got = decode_frames([frame])[0]
    assert got.tail_ids is not None
    assert got.tail_share is not None
    assert (got.tail_ids == tail_ids).all()
    assert np.allclose(got.tail_share, share)
    mass = decode(got, 1.0, GRID, samples=True).log_w.exp().sum(-1)
    assert torch.allclose(mass, torch.ones(count), atol=1e-5)


def test_samples_serve_no_other_temperature(teacher: LocalTeacher) -> None:
    rows = teacher.capture([TALKS[5].input_ids], profile("sampled"))[0]
    with pytest.raises(TemperatureError, match="drawn at T = 1"):
        decode(rows, 2.0, GRID, samples=True)
    assert decode(rows, 2.0, GRID).samples == 0
    bare = teacher.capture([TALKS[5].input_ids], profile("standard"))[0]
    assert decode(bare, 1.0, GRID, samples=True).samples == 0


def test_rows_with_and_without_samples_join_without(teacher: LocalTeacher) -> None:
    one = teacher.capture([TALKS[5].input_ids], profile("sampled"))[0]
    bare = teacher.capture([TALKS[6].input_ids], profile("standard"))[0]
    assert join_rows([one, bare]).tail_ids is None
    assert join_rows([one, one]).tail_ids is not None


@pytest.mark.parametrize("name", ["audit", "dense"])
@pytest.mark.parametrize("temperature", GRID)
def test_wide_rows_are_close_to_the_whole_distribution(
    name: ProfileName, temperature: float, teacher: LocalTeacher, tmp_path: Path
) -> None:
    """KL of what is stored to the live teacher over the whole vocabulary, with the rest as one."""
    report, lookup = stored(teacher, name, tmp_path)
    talk = TALKS[8]
    with lookup:
        rows = lookup.rows([talk.entry])[0]
    assert rows is not None
    got = decode(rows, temperature, GRID)
    live = torch.log_softmax(log_p(teacher, talk.input_ids) / temperature, -1)
    head = live.gather(1, got.ids)
    w = got.log_w.double().exp()
    kl = (w * (got.log_w.double() - head)).sum(-1)
    if name == "dense":
        assert rows.ids.shape[1] == V
        assert torch.isneginf(got.log_r).all()
        assert report.captured_mass == {"1": 1.0, "2": 1.0, "4": 1.0}
    else:
        assert rows.ids.shape[1] == AUDIT_HEAD
        rest = live.scatter(1, got.ids, -torch.inf).logsumexp(-1)
        kl += got.log_r.double().exp() * (got.log_r.double() - rest)
    assert kl.abs().max().item() < 1e-4


def stored(teacher: LocalTeacher, name: ProfileName, folder: Path) -> tuple[Any, ShardLookup]:
    space = CacheSpace(
        weights_fingerprint="a",
        tokenizer_fingerprint="b",
        vocabulary=V,
        profile=CaptureProfile(name=name),
    )
    report, files = capture(TALKS, teacher, space, folder=folder, callbacks=Silent())
    return report, ShardLookup([f.path for f in files], GRID)


@pytest.mark.parametrize("name", ["standard", "sampled", "audit", "dense"])
def test_every_profile_is_found_faithful(
    name: ProfileName, teacher: LocalTeacher, tmp_path: Path
) -> None:
    _, lookup = stored(teacher, name, tmp_path)
    lookup.close()
    found = check_faithfulness(
        TALKS, teacher, CaptureProfile(name=name), sorted(tmp_path.glob("*.shard"))
    )
    assert found.passed, found.sentence


@pytest.mark.parametrize(
    ("objective", "samples"),
    [
        (Objective(), 8),
        (Objective(temperature=2.0), 0),
        (Objective(kind="reverse_kl"), 0),
        (Objective(kind="jsd"), 0),
        (Objective(kind="total_variation"), 0),
    ],
)
def test_only_forward_kl_at_one_reads_the_samples(
    objective: Objective, samples: int, teacher: LocalTeacher, tmp_path: Path
) -> None:
    _, lookup = stored(teacher, "sampled", tmp_path)
    with lookup:
        batch = Collator(lookup, objective)(TALKS[3:7])
    assert batch.teacher is not None
    assert batch.teacher.samples == samples
    mass = batch.teacher.log_w.exp().sum(-1)
    whole = mass if samples else mass + batch.teacher.log_r.exp()
    assert torch.allclose(whole, torch.ones_like(whole), atol=1e-4)
