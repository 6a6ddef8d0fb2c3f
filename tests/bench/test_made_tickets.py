"""Made tickets: the same seed gives the same ones, all different, each with its truth."""

import json

from bench.made_tickets import INTENTS, PRIORITIES, PRODUCTS, conversation, tickets


def test_a_seed_names_the_tickets() -> None:
    first, again = list(tickets(300, 1)), list(tickets(300, 1))
    assert first == again
    assert len({t.text for t in first}) == 300
    assert not {t.text for t in first[:50]} & {t.text for t in tickets(50, 2)}


def test_every_class_occurs_and_the_text_names_the_order() -> None:
    made = list(tickets(300, 1))
    assert {t.intent for t in made} == set(INTENTS)
    assert {t.product for t in made} == set(PRODUCTS)
    assert {t.priority for t in made} == set(PRIORITIES)
    assert all(t.order in t.text for t in made)


def test_a_conversation_keeps_the_truth_apart_from_the_answer() -> None:
    ticket = next(iter(tickets(1, 1)))
    logged = conversation(ticket, logged="wrong").messages[-1]
    assert (logged.content, json.loads(logged.reference or "")["order"]) == ("wrong", ticket.order)
    assert not conversation(ticket, labelled=False).has_reference
