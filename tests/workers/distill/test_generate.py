<<<<<<< HEAD
"""Generation: the same answer alone, in a batch, in any order; ends, log-probabilities, seeds."""

from typing import Any
=======
"""Generation: the batch an answer was made in does not show, nor does torch's random state."""
>>>>>>> shell

import pytest
import torch

from tests.workers.distill import tiny
from workers.distill.callbacks import Silent
<<<<<<< HEAD
from workers.distill.errors import NothingToTrainError, StoppedError
from workers.distill.generate import Generation, generate

PROMPTS = [tiny.some_ids(n, seed=n) for n in (5, 12, 3, 9, 7)]


@pytest.fixture(scope="module")
def model() -> Any:
    made = tiny.make_model(seed=3).double()
    with torch.no_grad():
        made.lm_head.weight.mul_(20)  # tied: sharp enough that no two ids are nearly equal
    return made


def _ask(model: Any, prompts: Any = PROMPTS, **more: Any) -> list[Generation]:
    options = {"max_new_tokens": 8, "batch_size": 3, "callbacks": Silent()} | more
    return generate(model, tiny.make_tokenizer(), prompts, **options)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_batching_changes_nothing(model: Any, temperature: float) -> None:
    alone = _ask(model, batch_size=1, temperature=temperature, seed=4)
    together = _ask(model, batch_size=5, temperature=temperature, seed=4)
    assert [g.ids for g in alone] == [g.ids for g in together]
    for a, b in zip(alone, together, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_greedy_is_the_argmax_of_a_plain_forward(model: Any) -> None:
    for prompt, answer in zip(PROMPTS, _ask(model), strict=True):
        ids = list(prompt)
        for token, logp in zip(answer.ids, answer.logprobs, strict=True):
            scores = torch.log_softmax(tiny.logits(model, ids)[-1].float(), -1)
            assert int(scores.argmax()) == token
            assert logp == pytest.approx(float(scores[token]), abs=1e-5)
            ids.append(token)


def test_a_seed_names_the_sample(model: Any) -> None:
    first, again = (_ask(model, temperature=2.0, seed=1) for _ in range(2))
    assert first == again
    assert [g.ids for g in first] != [g.ids for g in _ask(model, temperature=2.0, seed=2)]


def test_sampling_follows_the_distribution() -> None:
    model = tiny.make_model(seed=2)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(8)
    prompt = tiny.some_ids(6)
    expected = torch.softmax(tiny.logits(model, prompt)[-1].float() / 0.7, -1)
    draws = _ask(model, [prompt] * 800, max_new_tokens=1, batch_size=400, temperature=0.7, seed=0)
    top = int(expected.argmax())
    share = sum(g.ids[0] == top for g in draws) / 800
    sigma = float((expected[top] * (1 - expected[top]) / 800) ** 0.5)
    assert 0.05 < float(expected[top]) < 0.95, "a share near 0 or 1 would prove nothing"
    assert abs(share - float(expected[top])) < 4 * sigma


def test_an_answer_ends_at_the_end_token(model: Any) -> None:
    ended = tiny.make_model(seed=3).double()
    ended.load_state_dict(model.state_dict())
    usual = _ask(ended, PROMPTS[:1])[0]
    assert (usual.finish_reason, len(usual.ids)) == ("length", 8)
    end = usual.ids[2]
    ended.generation_config.eos_token_id = [end, 0]
    cut = _ask(ended, PROMPTS[:2])[0]
    stop = usual.ids.index(end) + 1
    assert cut.finish_reason == "stop"
    assert cut.ids == usual.ids[:stop]
    assert len(cut.logprobs) == stop


def test_the_checkpoints_own_sampling_settings_are_ignored(model: Any) -> None:
    plain = _ask(model)
    model.generation_config.repetition_penalty = 5.0
    try:
        assert _ask(model) == plain
    finally:
        model.generation_config.repetition_penalty = None


def test_stopping_and_empty_prompts_are_named(model: Any) -> None:
    stopping = Silent()
    stopping.stop = True
    with pytest.raises(StoppedError, match="0 of 5"):
        _ask(model, callbacks=stopping)
    with pytest.raises(NothingToTrainError, match="empty"):
        _ask(model, [[]])
=======
from workers.distill.generate import Generation, generate

PROMPTS = [r.input_ids[:n].tolist() for n, r in enumerate(tiny.rendered(tiny.tickets(7)), start=20)]


def answers(batch_size: int, temperature: float, seed: int = 0) -> list[Generation]:
    return generate(
        tiny.llama(),
        tiny.tokenizer(),
        PROMPTS,
        max_new_tokens=6,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        callbacks=Silent(),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batching_and_global_state_change_nothing(temperature: float) -> None:
    alone = answers(1, temperature)
    torch.manual_seed(123)
    together = answers(4, temperature)
    assert [a.ids for a in alone] == [a.ids for a in together]
    for one, other in zip(alone, together, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert {a.batch for a in together} == {0, 1}


def test_seeds_draw_other_answers_and_zero_is_greedy() -> None:
    assert [a.ids for a in answers(4, 1.0)] != [a.ids for a in answers(4, 1.0, seed=1)]
    model, greedy = tiny.llama(), answers(4, 0.0)[0]
    ids = list(PROMPTS[0])
    for token, logprob in zip(greedy.ids, greedy.logprobs, strict=True):
        with torch.inference_mode():
            row = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1], -1)
        assert int(row.argmax()) == token
        assert float(row[token]) == pytest.approx(logprob, abs=1e-4)
        ids.append(token)


def test_an_answer_ends_at_eos() -> None:
    model = tiny.llama(tied=False)
    first = answers(1, 0.0)[0]
    assert (len(first.ids), first.finish_reason) == (6, "length")
    with torch.no_grad():  # any state now prefers the end token
        model.base_model.norm.weight.zero_()
        model.lm_head.weight.zero_()
    eos = tiny.tokenizer().eos_token_id
    model.generation_config.eos_token_id = [0, eos]  # all logits tie: the first id wins
    made = generate(
        model, tiny.tokenizer(), PROMPTS, max_new_tokens=6, batch_size=4, callbacks=Silent()
    )
    assert [(a.ids, a.finish_reason, a.text) for a in made] == [((0,), "stop", "")] * 7
>>>>>>> shell
