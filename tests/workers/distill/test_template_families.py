"""Exact targets under six families of chat templates: words and end of turn, nothing else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.specs.conversation import Conversation, Message, ToolCall
from app.specs.training import RenderSpec
from tests.workers.distill.families import FAMILIES, write_tokenizer
from workers.distill.errors import TemplateError
from workers.distill.rendering import Renderer

Make = Callable[..., Renderer]
BOTH = pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
EVERY = pytest.mark.parametrize("name", FAMILIES)

CALL = ToolCall(name="find_hotel", arguments='{"city":"Bern"}', id="call00001")
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "find_hotel"}}


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str, *, thought: str | None = None, call: ToolCall | None = None) -> Message:
    calls = (call,) if call else ()
    return Message(
        role="assistant", content=text, reasoning=thought, tool_calls=calls, is_target=True
    )


SYSTEM = Message(role="system", content="You book hotels.")
TALK = Conversation(
    messages=(user("Hello there"), answer("How may I help?"), user("A pizza"), answer("Yes."))
)
TRACE = Conversation(
    messages=(
        SYSTEM,
        user("Hello there"),
        answer("How may I help?"),
        user("A hotel"),
        answer("", call=CALL),
        Message(role="tool", content="Bellevue", tool_call_id="call00001"),
        answer("Bellevue it is."),
    ),
    tools=(TOOL,),
)
THOUGHTS = Conversation(
    messages=(
        user("Hello there"),
        answer("How may I help?", thought="Be kind."),
        user("A pizza"),
        answer("Yes.", thought="One only."),
    )
)
CALLED = {
    "qwen": '<tool_call>\n{"name": "find_hotel", "arguments": {"city": "Bern"}}\n</tool_call>',
    "llama": '{"name": "find_hotel", "parameters": {"city": "Bern"}}',
    "mistral": '[TOOL_CALLS] [{"name": "find_hotel", "arguments": {"city": "Bern"}, '
    '"id": "call00001"}]',
    "phi": '<|tool_call|>[{"name": "find_hotel", "arguments": {"city": "Bern"}}]<|/tool_call|>',
}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[tuple[str, bool], Any] = {}

    def renderer(name: str, *, marked: bool, **spec: Any) -> Renderer:
        if (name, marked) not in made:
            folder: Path = tmp_path_factory.mktemp(name)
            made[name, marked] = write_tokenizer(FAMILIES[name], folder, marked=marked)
        return Renderer(made[name, marked], RenderSpec(**spec))

    return renderer


def learned(renderer: Renderer, conversation: Conversation) -> list[str]:
    """Return every learned stretch of every part, as the tokenizer decodes it."""
    found, _ = renderer.parts(conversation)
    return [p.text for part in found for p in renderer.preview(part) if p.learned]


@EVERY
@BOTH
def test_words_and_end_of_turn_are_learned_and_nothing_else(
    name: str, marked: bool, make: Make
) -> None:
    family = FAMILIES[name]
    expected = [f"{family.lead}{words}{family.end}" for words in ("How may I help?", "Yes.")]
    assert learned(make(name, marked=marked), TALK) == expected
    assert learned(make(name, marked=marked, targets="last_turn"), TALK) == expected[1:]


@EVERY
@BOTH
def test_each_answer_stands_after_the_ids_that_generation_continues(
    name: str, marked: bool, make: Make
) -> None:
    renderer = make(name, marked=marked)
    trace = TRACE if FAMILIES[name].tools else TALK
    for conversation in (TALK, trace, THOUGHTS):
        turns = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
        starts = [
            (part, place)
            for part in renderer.parts(conversation)[0]
            for place in range(1, len(part.input_ids))
            if part.target_mask[place] and not part.target_mask[place - 1]
        ]
        assert len(starts) == len(turns)
        for turn, (part, place) in zip(turns, starts, strict=True):
            prompt = renderer.render_prompt(conversation.messages[:turn], conversation.tools)
            assert part.input_ids[:place].tolist() == prompt.tolist()


@EVERY
@BOTH
def test_ids_are_those_of_transformers(name: str, marked: bool, make: Make) -> None:
    renderer = make(name, marked=marked)
    messages = [{"role": m.role, "content": m.content} for m in TALK.messages]
    theirs = renderer.tokenizer.apply_chat_template(messages, tokenize=False)
    ours = renderer.tokenizer.decode(renderer.render(TALK).input_ids.tolist())
    if name == "llama":  # whose template asks for the day: ours is always the same one
        theirs = re.sub(r"Today: .*", "Today: 26 Jul 2024", theirs, count=1)
    assert ours == theirs


@EVERY
@BOTH
def test_calls_and_answers_of_a_trace_are_learned_and_results_are_not(
    name: str, marked: bool, make: Make
) -> None:
    family = FAMILIES[name]
    renderer = make(name, marked=marked)
    if not family.tools:
        words = {"gemma": "only user and assistant", "chatml": "does not write the tool call"}[name]
        with pytest.raises(TemplateError, match=words):
            renderer.parts(TRACE)
        return
    first = f"{family.lead}How may I help?{family.end}"
    call = f"{CALLED[name]}{family.end}"
    last = f"{family.lead}Bellevue it is.{family.end}"
    assert learned(renderer, TRACE) == [first, call, last]
    assert learned(make(name, marked=marked, targets="completion"), TRACE) == [call, last]
    assert learned(make(name, marked=marked, targets="last_turn"), TRACE) == [last]


@EVERY
@BOTH
def test_the_system_message_is_read_once_and_never_learned(
    name: str, marked: bool, make: Make
) -> None:
    renderer = make(name, marked=marked)
    told = TALK.model_copy(update={"messages": (SYSTEM, *TALK.messages)})
    parts, _ = renderer.parts(told)
    for part in parts:
        pieces = renderer.preview(part)
        assert sum(p.text.count(SYSTEM.content) for p in pieces) == 1
        assert not any(SYSTEM.content in p.text for p in pieces if p.learned)
    # Mistral's stands with the newest question, so the two answers were given to two texts.
    assert len(parts) == (2 if name == "mistral" else 1)
    assert learned(renderer, told) == learned(renderer, TALK)


@BOTH
def test_a_thought_is_learned_where_generation_writes_it(marked: bool, make: Make) -> None:
    renderer = make("qwen", marked=marked)
    parts, left_out = renderer.parts(THOUGHTS)
    assert (len(parts), left_out) == (2, 0)
    assert learned(renderer, THOUGHTS) == [
        "<think>\nBe kind.\n</think>\n\nHow may I help?<|im_end|>",
        "<think>\nOne only.\n</think>\n\nYes.<|im_end|>",
    ]
    # The second answer was given to a text without the first one's thought.
    assert "Be kind." not in renderer.tokenizer.decode(parts[1].input_ids.tolist())
    last = make("qwen", marked=marked, targets="last_turn").render(THOUGHTS)
    assert last.entry == parts[1].entry
    found = renderer.render_all([TALK, THOUGHTS])
    assert (len(found.rendered), found.in_parts, found.skipped) == (3, 1, {})


@BOTH
@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "qwen"])
def test_a_family_without_thoughts_leaves_them_out(name: str, marked: bool, make: Make) -> None:
    renderer = make(name, marked=marked)
    assert learned(renderer, THOUGHTS) == learned(renderer, TALK)
    assert len(renderer.parts(THOUGHTS)[0]) == 1


@BOTH
def test_thoughts_between_tools_are_learned_in_one_text(marked: bool, make: Make) -> None:
    messages = list(TRACE.messages)
    messages[4] = answer("", thought="Look it up.", call=CALL)
    messages[6] = answer("Bellevue it is.", thought="Only one.")
    trace = TRACE.model_copy(update={"messages": tuple(messages)})
    renderer = make("qwen", marked=marked)
    assert len(renderer.parts(trace)[0]) == 1
    assert learned(renderer, trace)[1:] == [
        f"<think>\nLook it up.\n</think>\n\n{CALLED['qwen']}<|im_end|>",
        "<think>\nOnly one.\n</think>\n\nBellevue it is.<|im_end|>",
    ]


def test_a_part_that_never_fits_is_counted_and_the_others_stay(make: Make) -> None:
    long = answer("How may I help?", thought="Be kind. " * 200)
    talk = THOUGHTS.model_copy(
        update={"messages": (THOUGHTS.messages[0], long, *THOUGHTS.messages[2:])}
    )
    renderer = make("qwen", marked=False, max_tokens=200)
    found = renderer.render_all([talk])
    assert (len(found.rendered), found.in_parts) == (1, 1)
    assert found.skipped == {"part_too_long": 1}


def test_a_prompt_that_begins_a_thought_needs_one(make: Make) -> None:
    renderer = make("chatml", marked=False)
    template: str = renderer.tokenizer.chat_template
    head, asking, tail = template.rpartition("<|im_start|>assistant\\n")
    renderer.tokenizer.chat_template = f"{head}{asking}<think>\\n{tail}"
    try:
        broken = Renderer(renderer.tokenizer, RenderSpec(targets="last_turn"))
        with pytest.raises(TemplateError, match="asks for the answer of message 4 with other"):
            broken.render(TALK)
    finally:
        renderer.tokenizer.chat_template = template
