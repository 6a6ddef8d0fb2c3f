"""What a training is validated on when the held-out part has nothing to learn from."""

from app.specs.training import RenderSpec
from tests.workers.distill import tiny
from tests.workers.tasks.test_teaching import Heard
from workers.distill.rendering import Renderer
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
