"""Canonical hashing: spellings of one message agree, different messages do not."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.specs.split import normalised, template
from workers.ingest.canonical import canon, spelling
from workers.ingest.chat import message_of
from workers.ingest.jsontext import parse_object

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


def said(raw: dict[str, Any]) -> int:
    return canon(message_of(parse_object(json.dumps(raw).encode()), set()))


def call(arguments: object, identifier: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": identifier, "function": function}]}


@settings(max_examples=50)
@given(OBJECT)
def test_arguments_agree_in_any_order_spacing_and_packing(arguments: dict[str, Any]) -> None:
    turned = dict(reversed(arguments.items()))
    spellings: list[object] = [arguments, json.dumps(arguments), json.dumps(turned, indent=2)]
    found = {said(call(value, f"call_{at}")) for at, value in enumerate(spellings)}
    assert len(found) == 1


@settings(max_examples=50)
@given(OBJECT, OBJECT)
def test_other_arguments_do_not_agree(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (said(call(one, "a")) == said(call(other, "a"))) == same


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_parts_white_space_and_null_agree(text: str) -> None:
    plain = said({"role": "user", "content": text})
    halves = [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]
    assert said({"role": "user", "content": halves}) == plain
    assert said({"role": "user", "content": f"\n {text}  "}) == plain
    assert said({"role": "user", "content": f"{text}\ufffd"}) == plain
    assert said({"role": "assistant", "content": text}) != plain
    assert said({"role": "user", "content": f"{text}x"}) != plain


def test_null_is_empty_beside_a_tool_call() -> None:
    bare = call("{}", "c")
    assert said(bare) == said({**bare, "content": None}) == said({**bare, "content": ""})
    assert said(bare) != said({**bare, "content": "let me see"})


def test_an_image_makes_another_question() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    text = {"type": "text", "text": "look"}
    assert said({"role": "user", "content": [text, image]}) != said(
        {"role": "user", "content": "look"}
    )


def test_plain_spelling_wins() -> None:
    plain = message_of({"role": "user", "content": "a"}, set())
    padded = message_of({"role": "user", "content": " a"}, set())
    assert spelling(plain) == 0 < spelling(padded)
    assert canon(plain) == canon(padded)


def test_clocks_leave_a_template() -> None:
    one = template("Now: Monday, 1st September 2026, 06:35 AM. You help.")
    other = template("Now: Tue, 22nd Oct 2027, 11:01 pm. You help.")
    assert one == other
    assert template("You help Ann.") != template("You help Bob.")
    assert normalised("  HELLO \n there") == normalised("hello there")
