"""What would be learned, for people: counts of all, pieces of a few, reasons of the rest."""

from pathlib import Path

from app.specs.training import RenderSpec
from tests.workers.distill.conftest import CHATML
from tests.workers.distill.families import FAMILIES, write_tokenizer
from tests.workers.distill.test_rendering import TWO_TURNS, Tokenizers, talk
from workers.distill.preview import MOST_READ, preview_of
from workers.distill.rendering import Renderer


def test_pieces_join_to_the_text_and_only_answers_are_learned(tokenizer_for: Tokenizers) -> None:
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(max_tokens=200))
    found = preview_of(renderer, [TWO_TURNS])
    [shown] = found.shown
    ids = renderer.render(TWO_TURNS)
    assert "".join(p.text for p in shown.pieces) == renderer.tokenizer.decode(ids.input_ids)
    learned = [p.text for p in shown.pieces if p.learned]
    assert learned == ["How may I help?<|im_end|>", "Yes, a big one.<|im_end|>"]
    assert sum(p.tokens for p in shown.pieces) == shown.tokens == found.tokens == len(ids.input_ids)
    assert shown.learned == found.learned == ids.target_mask.sum()


def test_what_cannot_be_trained_on_is_counted_by_reason(tokenizer_for: Tokenizers) -> None:
    whole = Renderer(tokenizer_for(CHATML), RenderSpec()).length(TWO_TURNS)
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(max_tokens=whole - 1))
    hopeless = talk(("user", "word " * 100), ("assistant", "Yes."))
    none = talk(("user", "Hello"), ("assistant", "Hi."), targets=())
    found = preview_of(renderer, [hopeless, none, TWO_TURNS])
    assert found.skipped == {"no_target": 1, "too_long": 1}
    assert f"longer than {whole - 1} tokens" in str(found.first_error)
    assert (found.looked_at, found.cut, len(found.shown)) == (3, 1, 1)
    nothing = preview_of(renderer, [hopeless])
    assert (nothing.tokens, nothing.shown, nothing.skipped) == (0, (), {"too_long": 1})


def test_one_that_was_cut_and_one_of_several_turns_are_among_those_shown(
    tokenizer_for: Tokenizers,
) -> None:
    whole = Renderer(tokenizer_for(CHATML), RenderSpec()).length(TWO_TURNS)
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(max_tokens=whole))
    short = [talk(("user", f"Number {n}"), ("assistant", "Yes.")) for n in range(5)]
    long = talk(("user", "word " * 40), ("assistant", "No."), ("user", "So?"), ("assistant", "Hm."))
    found = preview_of(renderer, [*short, TWO_TURNS, long])
    shown = [c.conversation_id for c in found.shown]
    assert shown[:3] == [c.id for c in short[:3]]
    assert set(shown[3:]) == {TWO_TURNS.id, long.id}
    assert found.cut == 1


def test_long_texts_are_clipped_for_people_alone(tokenizer_for: Tokenizers) -> None:
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(max_tokens=10_000))
    long = talk(("user", "word " * 1000), ("assistant", "Yes."))
    [shown] = preview_of(renderer, [long]).shown
    assert "characters …" in shown.pieces[0].text
    assert len(shown.pieces[0].text) < MOST_READ + 50
    assert shown.tokens == len(renderer.render(long).input_ids)


def test_parts_are_shown_one_by_one_and_counted_as_one_conversation(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(FAMILIES["qwen"], tmp_path, marked=False)
    thoughtful = TWO_TURNS.model_copy(
        update={
            "messages": tuple(
                m.model_copy(update={"reasoning": f"Thought {i}."}) if m.is_target else m
                for i, m in enumerate(TWO_TURNS.messages)
            )
        }
    )
    found = preview_of(Renderer(tokenizer, RenderSpec()), [thoughtful])
    assert (found.looked_at, found.in_parts, len(found.shown)) == (1, 1, 2)
    learned = [[p.text for p in c.pieces if p.learned] for c in found.shown]
    assert learned == [
        ["<think>\nThought 1.\n</think>\n\nHow may I help?<|im_end|>"],
        ["<think>\nThought 3.\n</think>\n\nYes, a big one.<|im_end|>"],
    ]
