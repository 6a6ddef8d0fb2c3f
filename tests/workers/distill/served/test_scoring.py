"""Rows asked of a server against those of the same model here; a whole cache; what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.specs.teacher import CacheSpace, CaptureProfile
from tests.support.served import Faults, Served
from tests.workers.distill import tiny
from tests.workers.distill.served.conftest import server_of, sharp
from workers.distill.callbacks import Silent
from workers.distill.capture import capture, check_faithfulness
from workers.distill.errors import (
    EndpointAnswerError,
    EndpointContextError,
    EndpointError,
    EndpointLogprobsError,
    EndpointTokenizerError,
    TemperatureError,
    UnfaithfulCacheError,
)
from workers.distill.served.client import Endpoint
from workers.distill.served.scoring import LEAST_RESIDUAL, ServedTeacher, head_of
from workers.distill.teachers import LocalTeacher

V = len(tiny.tokenizer())
PROFILE = CaptureProfile(k_max=20, k_min=4, temperatures=(1.0,))
SPACE = CacheSpace(
    weights_fingerprint="a" * 64,
    tokenizer_fingerprint="b" * 64,
    vocabulary=V,
    profile=PROFILE,
    dtype="served",
    attention="served",
)


def texts(count: int = 6) -> tuple[Any, ...]:
    return tiny.rendered(tiny.tickets(count))


@pytest.mark.parametrize("profile", [PROFILE, PROFILE.model_copy(update={"head_mass": 0.5})])
def test_rows_equal_those_of_the_same_model_here(served: Served, profile: CaptureProfile) -> None:
    batch = [item.input_ids for item in texts()] + [np.array([3], dtype=np.int32)]
    here = LocalTeacher(sharp(), V).capture(batch, profile)
    with Endpoint(server_of(served)) as endpoint:
        there = ServedTeacher(endpoint, V, 20).capture(batch, profile)
    assert sum((row.ids < 0).sum() for row in there) > 0, "rows are cut at the head's mass"
    for ours, theirs in zip(here, there, strict=True):
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.allclose(ours.logp, theirs.logp, atol=2e-5)
        assert np.allclose(np.exp(ours.log_r), np.exp(theirs.log_r), atol=2e-6)
        assert theirs.log_r.shape == ours.log_r.shape
        assert np.all(theirs.entropy <= ours.entropy + 1e-4), "a lower bound"
    assert len(there[-1].ids) == 0
    sent = [body for path, body in served.asked if path == "/v1/completions"]
    assert {(b["max_tokens"], b["temperature"], b["prompt_logprobs"]) for b in sent} == {
        (1, 1.0, 20)
    }


def test_a_row_by_hand() -> None:
    """Three kept of four; the token that stands there is fifth and is left out."""
    p = {7: 0.5, 2: 0.25, 9: 0.125, 4: 0.0625, 8: 0.01}
    entry = {
        str(token): {"logprob": math.log(value), "rank": rank}
        for rank, (token, value) in enumerate(p.items(), 1)
    }
    assert head_of(dict(reversed(entry.items())), 4, 10)[0] == [7, 2, 9, 4]

    class Hand:
        server = server_of(Served(None, None, faults=Faults()), allowed=())

        def ask_all(self, questions: Any) -> list[Any]:
            return [{"choices": [{"prompt_logprobs": [None, entry]}]} for _ in questions]

    teacher = ServedTeacher(Hand(), 10, 4)  # type: ignore[arg-type] # what of it is used
    profile = CaptureProfile(k_max=4, k_min=1, head_mass=0.8, temperatures=(1.0,))
    [rows] = teacher.capture([np.array([1, 8], dtype=np.int32)], profile)
    assert rows.ids.tolist() == [[7, 2, 9, -1]]
    assert rows.logp[0, :3] == pytest.approx(np.log([0.5, 0.25, 0.125]), abs=1e-6)
    assert rows.log_r[0, 0] == pytest.approx(math.log(0.125), abs=1e-6)
    seen = -sum(x * math.log(x) for x in (0.5, 0.25, 0.125, 0.0625, 0.0625))
    assert rows.entropy[0] == pytest.approx(seen, abs=1e-6)
    [dense] = list(teacher.log_probs([np.array([1, 8], dtype=np.int32)]))
    assert dense.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert dense[0, 0].exp().item() == pytest.approx(0.0625 / 6, abs=1e-12)


def test_a_head_that_is_everything_keeps_a_finite_bucket(served: Served) -> None:
    profile = CaptureProfile(k_max=V, k_min=V, temperatures=(1.0,))
    served.most = V
    with Endpoint(server_of(served)) as endpoint:
        [rows] = ServedTeacher(endpoint, V, V).capture([texts(1)[0].input_ids], profile)
    assert np.isfinite(rows.log_r).all()
    assert np.exp(rows.log_r).max() < 1e-5
    assert rows.log_r.min() >= math.log(LEAST_RESIDUAL) - 1e-6


def test_a_whole_cache_is_filled_and_checked_against_the_server(
    served: Served, tmp_path: Path
) -> None:
    items = texts(12)
    with Endpoint(server_of(served, at_once=3)) as endpoint:
        teacher = ServedTeacher(endpoint, V, 20)
        report, made = capture(
            items, teacher, SPACE, folder=tmp_path, callbacks=Silent(), shard_rows=200
        )
        found = check_faithfulness(items, teacher, PROFILE, [s.path for s in made])
        assert found.passed
        assert found.live_live == pytest.approx(0, abs=1e-7)
        assert 0 < found.stored_live < 1e-3
        served.model = sharp(seed=1)
        assert not check_faithfulness(items, teacher, PROFILE, [s.path for s in made]).passed
    assert report.missing_entries == 0
    assert report.new_rows == sum(
        len(item.input_ids) - 1 for item in {i.entry: i for i in items}.values()
    )
    assert len(made) > 1
    assert 1 <= served.most_at_once <= 3
    assert UnfaithfulCacheError is not None


def test_what_was_captured_before_the_server_died_is_published(
    served: Served, tmp_path: Path
) -> None:
    class Told(Silent):
        def __init__(self) -> None:
            self.shards: list[Any] = []

        def publish(self, payload: Any) -> None:
            self.shards.append(payload["shard"])

    told, served.faults.dies_after = Told(), 8
    with Endpoint(server_of(served, at_once=1)) as endpoint, pytest.raises(EndpointError):
        capture(
            texts(12),
            ServedTeacher(endpoint, V, 20),
            SPACE,
            folder=tmp_path,
            callbacks=told,
            shard_rows=100,
        )
    assert told.shards


def test_another_temperature_or_a_larger_k_is_refused(served: Served) -> None:
    ids = [texts(1)[0].input_ids]
    with Endpoint(server_of(served)) as endpoint:
        teacher = ServedTeacher(endpoint, V, 20)
        with pytest.raises(TemperatureError, match="T = 1 only"):
            teacher.capture(ids, CaptureProfile(k_max=20))
        with pytest.raises(EndpointLogprobsError, match="at most 20 log-probabilities"):
            teacher.capture(ids, CaptureProfile(temperatures=(1.0,)))
    assert served.asked == []


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (Faults(short_positions=True), EndpointLogprobsError, "positions for"),
        (Faults(none_positions=True), EndpointLogprobsError, "prefix caching"),
        (Faults(ignores_logprobs=True), EndpointLogprobsError, "ignores prompt_logprobs"),
        (Faults(refuses_logprobs=True), EndpointLogprobsError, "not supported by this deployment"),
        (Faults(other_ids=True), EndpointTokenizerError, "it read other ids"),
        (Faults(shifted_ids=10_000), EndpointTokenizerError, "512 entries"),
    ],
)
def test_answers_that_are_no_rows_are_named(
    served: Served, faults: Faults, error: type[Exception], words: str
) -> None:
    served.faults = faults
    with Endpoint(server_of(served)) as endpoint, pytest.raises(error, match=words):
        ServedTeacher(endpoint, V, 20).capture([texts(1)[0].input_ids], PROFILE)


def test_a_text_longer_than_the_server_reads_is_named(served: Served) -> None:
    served.context = 16
    with (
        Endpoint(server_of(served)) as endpoint,
        pytest.raises(EndpointContextError, match="max tokens lower"),
    ):
        ServedTeacher(endpoint, V, 20).capture([texts(1)[0].input_ids], PROFILE)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"1": {"logprob": "x"}}, "cannot be read"),
        ({"1": 3}, "cannot be read"),
        ({"one": {"logprob": -1.0}}, "cannot be read"),
        ({"1": {"logprob": -2.0, "rank": 1}, "2": {"logprob": -1.0, "rank": 2}}, "order"),
        ({"1": {"logprob": 0.5, "rank": 1}, "2": {"logprob": -1.0, "rank": 2}}, "above 0"),
        (
            {"1": {"logprob": -math.inf, "rank": 1}, "2": {"logprob": -math.inf, "rank": 2}},
            "no log",
        ),
        ({"1": {"logprob": -1.0, "rank": 1}}, "1 log-probabilities of a token where 2"),
    ],
)
def test_malformed_entries_are_named(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(EndpointAnswerError, match=words):
        head_of(entry, 2, 10)


def test_the_dense_view_has_the_mass_that_the_model_gives(served: Served) -> None:
    ids = texts(1)[0].input_ids
    with Endpoint(server_of(served)) as endpoint:
        [dense] = list(ServedTeacher(endpoint, V, 20).log_probs([ids]))
        parts = list(ServedTeacher(endpoint, V, 20).log_probs([ids], chunk=3))
    assert {len(part) for part in parts[:-1]} == {3}
    assert torch.equal(torch.cat(parts), dense)
    [whole] = list(LocalTeacher(sharp(), V).log_probs([ids]))
    top = whole.topk(20, dim=-1).indices
    assert torch.allclose(dense.gather(1, top), whole.gather(1, top), atol=2e-5)
    assert torch.allclose(dense.exp().sum(-1), torch.ones(len(dense), dtype=torch.float64))
