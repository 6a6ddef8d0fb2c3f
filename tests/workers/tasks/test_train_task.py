"""What a training is validated on when the held-out part has nothing to learn from."""

from app.specs.training import RenderSpec
from tests.workers.distill import tiny
from tests.workers.tasks.test_teaching import Heard
from workers.distill.rendering import Renderer
from workers.tasks.left_out import tell
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
