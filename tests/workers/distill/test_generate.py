"""Generation: the batch an answer was made in does not show, nor does torch's random state."""

import pytest
import torch

from tests.workers.distill import tiny
from workers.distill.callbacks import Silent
from workers.distill.generate import Generation, GenerationStopped, generate

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


class StopAfter(Silent):
    """Asks to stop once it was polled `polls` times."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_stop_ends_within_a_token_and_keeps_whole_batches() -> None:
    whole = answers(2, 0.0)
    stop = StopAfter(6 + 2)  # the second of the second batch's six tokens
    with pytest.raises(GenerationStopped) as caught:
        generate(
            tiny.llama(),
            tiny.tokenizer(),
            PROMPTS,
            max_new_tokens=6,
            batch_size=2,
            callbacks=stop,
        )
    assert stop.left == -1, "polled on after the stop"
    assert {i: a.ids for i, a in caught.value.answers.items()} == {
        i: whole[i].ids for i in caught.value.answers
    }
    assert len(caught.value.answers) == 2
