"""Exact target masks under every family of template, the cut rule, and named refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.specs.conversation import Conversation, Message, ToolCall
from app.specs.training import RenderSpec
from tests.workers.distill.conftest import (
    CHATML,
    CHATML_MARKED,
    CHATML_MARKED_SHORT,
    DEFAULT_SYSTEM,
    GEMMA,
    LLAMA,
    MISTRAL,
    TOOLS,
)
from workers.distill.errors import NothingToTrainError, TemplateError
from workers.distill.rendering import Renderer, entry_of

Tokenizers = Callable[[str | None], Any]
FAMILIES = {
    "chatml": (CHATML, "<|im_end|>"),
    "chatml marked": (CHATML_MARKED, "<|im_end|>"),
    "chatml marked, end outside": (CHATML_MARKED_SHORT, "<|im_end|>"),
    "llama": (LLAMA, "<|eot|>"),
    "mistral": (MISTRAL, "</s>"),
    "gemma": (GEMMA, "<|eot|>"),
}


def talk(*turns: tuple[str, str], targets: tuple[int, ...] | None = None) -> Conversation:
    return Conversation(
        messages=tuple(
            Message(
                role=role,  # type: ignore[arg-type] # plain strings in tests
                content=text,
                is_target=role == "assistant" if targets is None else i in targets,
            )
            for i, (role, text) in enumerate(turns)
        )
    )


TWO_TURNS = talk(
    ("user", "Hello there"),
    ("assistant", "How may I help?"),
    ("user", "One pizza, please"),
    ("assistant", "Yes, a big one."),
)


def targets_of(renderer: Renderer, conversation: Conversation) -> list[str]:
    return [p.text for p in renderer.preview(renderer.render(conversation)) if p.learned]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_target_turn_and_its_end_is_in_the_mask(
    family: str, tokenizer_for: Tokenizers
) -> None:
    template, end = FAMILIES[family]
    renderer = Renderer(tokenizer_for(template), RenderSpec())
    found = targets_of(renderer, TWO_TURNS)
    assert [t.strip() for t in found] == [f"How may I help?{end}", f"Yes, a big one.{end}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_is_the_beginning_and_the_first_token_after_it_is_a_target(
    family: str, tokenizer_for: Tokenizers
) -> None:
    renderer = Renderer(tokenizer_for(FAMILIES[family][0]), RenderSpec())
    whole = renderer.render(TWO_TURNS)
    for turn in (1, 3):
        prompt = renderer.render_prompt(TWO_TURNS.messages[:turn])
        assert whole.input_ids[: len(prompt)].tolist() == prompt.tolist()
        assert whole.target_mask[len(prompt)]
        assert not whole.target_mask[len(prompt) - 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_the_plain_template(family: str, tokenizer_for: Tokenizers) -> None:
    tokenizer = tokenizer_for(FAMILIES[family][0])
    rendered = Renderer(tokenizer, RenderSpec()).render(TWO_TURNS)
    messages = [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert rendered.input_ids.tolist() == expected["input_ids"]
    assert rendered.entry == entry_of(rendered.input_ids)


def test_marks_agree_with_transformers_own_mask(tokenizer_for: Tokenizers) -> None:
    tokenizer = tokenizer_for(CHATML_MARKED)
    rendered = Renderer(tokenizer, RenderSpec()).render(TWO_TURNS)
    expected = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    theirs = np.array(expected["assistant_masks"], dtype=bool)
    # The template marks the line break after the end of a turn too; nothing generates that.
    breaks = [
        i for i in np.flatnonzero(theirs) if not tokenizer.decode(expected["input_ids"][i]).strip()
    ]
    inside = [
        i
        for i in breaks
        if expected["input_ids"][i - 1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    ]
    assert len(inside) == 2
    theirs[inside] = False
    assert rendered.target_mask.tolist() == theirs.tolist()


def test_default_system_message_is_context(tokenizer_for: Tokenizers) -> None:
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec())
    piece = renderer.preview(renderer.render(TWO_TURNS))[0]
    first, wanted = piece.text, piece.learned
    assert DEFAULT_SYSTEM in first
    assert not wanted


def test_only_flagged_turns_are_targets(tokenizer_for: Tokenizers) -> None:
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec())
    turns = [(m.role, m.content) for m in TWO_TURNS.messages]
    assert targets_of(renderer, talk(*turns, targets=(1,))) == ["How may I help?<|im_end|>"]
    assert targets_of(renderer, talk(*turns, targets=(3,))) == ["Yes, a big one.<|im_end|>"]
    with pytest.raises(NothingToTrainError) as caught:
        renderer.render(talk(*turns, targets=()))
    assert caught.value.reason == "no_target"


def test_last_turn_view_shares_the_entry(tokenizer_for: Tokenizers) -> None:
    tokenizer = tokenizer_for(CHATML)
    last = Renderer(tokenizer, RenderSpec(targets="last_turn"))
    assert targets_of(last, TWO_TURNS) == ["Yes, a big one.<|im_end|>"]
    every = Renderer(tokenizer, RenderSpec()).render(TWO_TURNS)
    assert last.render(TWO_TURNS).entry == every.entry


def test_reference_replaces_the_last_answer_that_has_one(tokenizer_for: Tokenizers) -> None:
    messages = list(TWO_TURNS.messages)
    messages[3] = messages[3].model_copy(update={"reference": "Which size?"})
    conversation = TWO_TURNS.model_copy(update={"messages": tuple(messages)})
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(answer="reference"))
    assert targets_of(renderer, conversation) == ["Which size?<|im_end|>"]
    with pytest.raises(NothingToTrainError) as caught:
        renderer.render(TWO_TURNS)
    assert caught.value.reason == "no_reference"


def test_tool_calls_are_targets_and_results_are_not(tokenizer_for: Tokenizers) -> None:
    call = ToolCall(name="find_hotel", arguments='{"city":"Bern"}', id="c1")
    conversation = Conversation(
        messages=(
            Message(role="user", content="A hotel"),
            Message(role="assistant", tool_calls=(call,), is_target=True),
            Message(role="tool", content="Bellevue", tool_call_id="c1"),
            Message(role="assistant", content="Bellevue it is", is_target=True),
        ),
        tools=({"type": "function", "function": {"name": "find_hotel"}},),
    )
    renderer = Renderer(tokenizer_for(TOOLS), RenderSpec())
    assert targets_of(renderer, conversation) == [
        'find_hotel({"city": "Bern"})<|eot|>',
        "Bellevue it is<|eot|>",
    ]
    with pytest.raises(TemplateError, match="does not write the tool call 'find_hotel'"):
        Renderer(tokenizer_for(CHATML), RenderSpec()).render(conversation)


def long_talk(turns: int) -> Conversation:
    pairs: list[tuple[str, str]] = [("system", "S")]
    for number in range(turns):
        pairs += [("user", f"question {number} " + "x" * 20), ("assistant", f"answer {number}")]
    return talk(*pairs)


def test_cut_keeps_the_system_drops_the_oldest_turns_and_counts(tokenizer_for: Tokenizers) -> None:
    tokenizer = tokenizer_for(CHATML)
    conversation = long_talk(8)
    whole = Renderer(tokenizer, RenderSpec()).render(conversation)
    limit = len(whole.input_ids) * 2 // 3
    renderer = Renderer(tokenizer, RenderSpec(max_tokens=limit))
    cut = renderer.render(conversation)
    assert cut.cut_messages > 0
    assert cut.cut_messages % 2 == 0
    kept = conversation.messages[:1] + conversation.messages[1 + cut.cut_messages :]
    assert kept[1].role == "user"
    same = Renderer(tokenizer, RenderSpec()).render(
        conversation.model_copy(update={"messages": kept})
    )
    assert cut.input_ids.tolist() == same.input_ids.tolist()
    assert cut.target_mask.tolist() == same.target_mask.tolist()
    # The fewest turns went: with one pair more it would not have fitted.
    more = conversation.messages[:1] + conversation.messages[cut.cut_messages - 1 :]
    longer = Renderer(tokenizer, RenderSpec()).render(
        conversation.model_copy(update={"messages": more})
    )
    assert len(cut.input_ids) <= limit < len(longer.input_ids)


def test_a_turn_that_never_fits_is_refused(tokenizer_for: Tokenizers) -> None:
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(max_tokens=8))
    with pytest.raises(NothingToTrainError) as caught:
        renderer.render(TWO_TURNS)
    assert caught.value.reason == "too_long"


def test_a_set_counts_what_it_leaves_out(tokenizer_for: Tokenizers) -> None:
    renderer = Renderer(tokenizer_for(CHATML), RenderSpec(max_tokens=120))
    untargeted = talk(("user", "hi"), ("assistant", "yo"), targets=())
    broken = talk(("user", "half a pair \ud83d"), ("assistant", "yo"))
    endless = talk(("user", "word " * 400), ("assistant", "yo"))
    found = renderer.render_all([TWO_TURNS, untargeted, broken, endless])
    assert len(found.rendered) == 1
    assert found.skipped == {"no_target": 1, "template": 1, "too_long": 1}
    assert found.first_error is not None
    with pytest.raises(NothingToTrainError, match="None of 1 conversations"):
        renderer.render_all([untargeted])


REWRITES_HISTORY = (
    "{% for m in messages %}<turn>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content[:3] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
MARKS_ONE = (
    "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|eot|>{% endfor %}"
)
HOSTILE = {
    "no template": (None, "no chat template"),
    "syntax": ("{% for m in messages %}", "refused 4 messages"),
    "raises": ("{{ raise_exception('not like this') }}", "not like this"),
    "escapes the sandbox": ("{{ messages.__class__.__mro__ }}", "refused 4 messages"),
    "divides by zero": ("{{ 1 / 0 }}", "division by zero"),
    "rewrites history": (REWRITES_HISTORY, "differently once it goes on"),
    "marks one of two": (MARKS_ONE, "marks 1 generations for 2"),
    "writes no answer": ("{% for m in messages %}<turn>{% endfor %}", "does not write the answer"),
    "glues prompt and answer": (
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "reaches across the border",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_are_named(case: str, tokenizer_for: Tokenizers) -> None:
    template, words = HOSTILE[case]
    glued = talk(
        ("user", "Hel"), ("assistant", "lo"), ("user", "how may I hel"), ("assistant", "p you")
    )
    conversation = glued if case == "glues prompt and answer" else TWO_TURNS
    with pytest.raises(TemplateError, match=words):
        Renderer(tokenizer_for(template), RenderSpec()).render(conversation)


def test_a_conversation_cannot_begin_with_a_target(tokenizer_for: Tokenizers) -> None:
    with pytest.raises(TemplateError, match="cannot begin with a target"):
        Renderer(tokenizer_for(CHATML), RenderSpec()).render(talk(("assistant", "Hello")))
