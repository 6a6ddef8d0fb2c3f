<<<<<<< HEAD
"""Support tickets made from a seed, and the JSON a desk wants of them: the demo's narrow task.

Many ways to say each intent, so that a hundred labelled tickets do not cover them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from app.specs.conversation import Conversation, Message, Split

SYSTEM = "Turn the ticket into JSON."

_OPENINGS = (
    "Hi,",
    "Hello there,",
    "Hey team,",
    "Good morning,",
    "Dear support,",
    "Hi again,",
    "Hello,",
    "",
    "Quick one:",
    "Not sure who to ask:",
)
_PRODUCTS = (
    "kettle",
    "lamp",
    "backpack",
    "tent",
    "headset",
    "keyboard",
    "monitor",
    "blender",
    "bike",
    "jacket",
    "printer",
    "camera",
)
_NICKNAMES = {
    "kettle": ("kettle", "water boiler"),
    "lamp": ("lamp", "desk light"),
    "backpack": ("backpack", "rucksack"),
    "tent": ("tent", "two-person tent"),
    "headset": ("headset", "headphones"),
    "keyboard": ("keyboard", "wireless keyboard"),
    "monitor": ("monitor", "27 inch screen"),
    "blender": ("blender", "smoothie maker"),
    "bike": ("bike", "bicycle"),
    "jacket": ("jacket", "rain coat"),
    "printer": ("printer", "laser printer"),
    "camera": ("camera", "webcam"),
}
_ASKS = {
    "refund": (
        "I want my money back for the {p}",
        "please refund the {p}",
        "the {p} goes back, pay me back",
        "can you return what I paid for the {p}",
        "I am owed for the {p} I sent back",
        "when will my bank see the sum for the {p}",
        "I have not been reimbursed for the {p}",
    ),
    "delivery": (
        "where is my {p}",
        "the {p} has not arrived",
        "still waiting for the {p}",
        "the courier never came with the {p}",
        "tracking for the {p} has not moved for days",
        "it said Tuesday but no {p} yet",
        "has the {p} been shipped at all",
    ),
    "defect": (
        "the {p} stopped working",
        "my {p} arrived broken",
        "the {p} makes a strange noise",
        "there is a crack in the {p}",
        "the {p} will not turn on",
        "the {p} fell apart after a week",
        "one part of the {p} is missing",
    ),
    "cancel": (
        "please cancel the {p}",
        "I no longer need the {p}",
        "stop the {p} before it ships",
        "I ordered the {p} by mistake",
        "do not send the {p}",
        "call off the {p}, I changed my mind",
        "I found the {p} cheaper, so drop it",
    ),
    "exchange": (
        "can I swap the {p} for another colour",
        "the {p} is the wrong size",
        "send me a different {p}",
        "I would like to trade the {p} for a larger one",
        "you sent the wrong {p}",
        "I got the {p} in red and wanted blue",
        "may I get another model of the {p}",
    ),
    "invoice": (
        "I need a receipt for the {p}",
        "the bill for the {p} is wrong",
        "send the invoice of the {p}",
        "my company needs paperwork for the {p}",
        "the VAT on the {p} looks off",
        "you charged me twice for the {p}",
        "the name on the {p} bill is misspelt",
    ),
}
_MOODS = {
    "high": (
        "This is urgent.",
        "I need this today.",
        "Answer at once please.",
        "I am losing patience.",
        "It cannot wait.",
        "My event is tomorrow.",
    ),
    "normal": (
        "Thanks.",
        "Please let me know.",
        "Could you check?",
        "What can be done?",
        "Best, Kim",
        "",
    ),
    "low": (
        "No hurry.",
        "Whenever you have time.",
        "It can wait.",
        "Take your time.",
        "Next week is fine.",
    ),
}
_ORDERS = ("order {o}", "number {o}", "#{o}", "ref {o}", "order no {o}", "it was {o}")
INTENTS = tuple(_ASKS)
PRODUCTS = _PRODUCTS
PRIORITIES = tuple(_MOODS)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket's text and its truth."""

    text: str
    intent: str
    product: str
    order: str
    priority: str

    @property
    def answer(self) -> str:
        """The JSON a desk wants, always in this order of keys."""
        return json.dumps(
            {
                "intent": self.intent,
                "product": self.product,
                "order": self.order,
                "priority": self.priority,
            },
            separators=(",", ":"),
        )


def tickets(count: int, seed: int) -> Iterator[Ticket]:
    """Yield `count` tickets; the same seed gives the same ones, no text comes twice."""
    rng = np.random.default_rng([20261124, seed])
    seen: set[str] = set()
    while len(seen) < count:
        intent, product = str(rng.choice(INTENTS)), str(rng.choice(PRODUCTS))
        priority = str(rng.choice(PRIORITIES, p=(0.3, 0.45, 0.25)))
        order = f"{rng.choice(list('ABKTX'))}{rng.integers(10, 100)}"
        ask = str(rng.choice(_ASKS[intent])).format(p=rng.choice(_NICKNAMES[product]))
        reference = str(rng.choice(_ORDERS)).format(o=order)
        mood, opening = str(rng.choice(_MOODS[priority])), str(rng.choice(_OPENINGS))
        body = f"{ask}, {reference}." if rng.random() < 0.6 else f"{reference}: {ask}."  # noqa: PLR2004 - a share
        parts = [opening, body, mood] if rng.random() < 0.7 else [opening, mood, body]  # noqa: PLR2004 - a share
        text = " ".join(p for p in parts if p)
        if text not in seen:
            seen.add(text)
            yield Ticket(text, intent, product, order, priority)


def conversation(
    ticket: Ticket, *, logged: str | None = None, labelled: bool = True, split: Split = "train"
) -> Conversation:
    """Return a ticket as a conversation: `logged` is the traffic's answer (else the truth)."""
    answer = Message(
        role="assistant",
        content=ticket.answer if logged is None else logged,
        is_target=True,
        reference=ticket.answer if labelled else None,
    )
    asked = (Message(role="system", content=SYSTEM), Message(role="user", content=ticket.text))
    return Conversation(messages=(*asked, answer), group=ticket.text, split=split)
=======
"""A made task: support tickets → one JSON object. Seeded, with ground truth, short on purpose."""

import json
import random
from collections.abc import Iterator
from typing import Any

from app.specs.conversation import Conversation, Message
from app.specs.fingerprint import fingerprint

SYSTEM = "Turn the ticket into JSON."
PRODUCTS = {
    "kettle": ("kettle", "electric kettle", "water boiler"),
    "lamp": ("lamp", "desk lamp", "reading light"),
    "router": ("router", "wifi box", "internet router"),
    "chair": ("chair", "office chair", "desk seat"),
    "headset": ("headset", "headphones", "earphones"),
    "backpack": ("backpack", "rucksack", "bag"),
    "watch": ("watch", "smart watch", "wristwatch"),
    "blender": ("blender", "mixer", "smoothie maker"),
}
INTENTS = {
    "refund": (
        "I want my money back for the {product}",
        "please refund the {product}",
        "the {product} is not worth it, return my payment",
        "you charged me for a {product} I sent back",
    ),
    "damaged": (
        "the {product} arrived broken",
        "there is a crack in my new {product}",
        "my {product} came in pieces",
        "the {product} was smashed in the box",
    ),
    "late": (
        "where is my {product}",
        "the {product} should have been here last week",
        "still waiting for the {product}",
        "no {product} yet and tracking shows nothing",
    ),
    "wrong_item": (
        "I got something else instead of the {product}",
        "this is not the {product} I ordered",
        "you sent me the wrong {product}",
        "someone else's parcel came, I wanted a {product}",
    ),
    "cancel": (
        "please stop the order of the {product}",
        "I changed my mind about the {product}",
        "do not ship the {product}",
        "cancel my {product} before it leaves",
    ),
    "how_to": (
        "how do I set up the {product}",
        "the manual of the {product} is missing, how does it work",
        "can you explain the buttons on my {product}",
        "what is the right way to clean the {product}",
    ),
}
OPENERS = ("", "Hi, ", "Hello, ", "Good morning. ", "Dear team, ", "Hey, ", "Sorry to bother you, ")
ORDERS = (" (order {order})", ", order {order}", ". Order number {order}", " – my order is {order}")
ORDER_SHARE = 0.7
URGENCY = {
    "high": (". This is urgent", ". I need an answer today", ". Please hurry", ". At once, please"),
    "normal": ("", ". Thanks", ". Kind regards", ". Let me know"),
    "low": (
        ". No rush",
        ". Whenever you have time",
        ". It can wait",
        ". Not important, just asking",
    ),
}


def made_tickets(count: int, *, seed: int = 0) -> Iterator[Conversation]:
    """Yield `count` different conversations: system, ticket, JSON answer (also as reference).

    The answer's keys are intent, item, order (a number or null) and priority. Under SmolLM2's
    tokenizer a conversation takes at most 96 tokens and its answer at most 24.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible data set, not a secret
    seen: set[str] = set()
    while len(seen) < count:
        ticket, truth = _ticket(rng)
        if ticket in seen:
            continue
        seen.add(ticket)
        answer = json.dumps(truth, separators=(",", ":"))
        yield Conversation(
            messages=(
                Message(role="system", content=SYSTEM),
                Message(role="user", content=ticket),
                Message(role="assistant", content=answer, reference=answer, is_target=True),
            ),
            group=fingerprint([SYSTEM, ticket]),
        )


def _ticket(rng: random.Random) -> tuple[str, dict[str, Any]]:
    intent, item = rng.choice(sorted(INTENTS)), rng.choice(sorted(PRODUCTS))
    priority = rng.choice(("high", "normal", "normal", "low"))
    order = rng.randrange(10, 1000) if rng.random() < ORDER_SHARE else None
    text = rng.choice(OPENERS) + rng.choice(INTENTS[intent]).format(
        product=rng.choice(PRODUCTS[item])
    )
    if order is not None:
        text += rng.choice(ORDERS).format(order=order)
    text += rng.choice(URGENCY[priority]) + rng.choice((".", "", "!"))
    truth = {"intent": intent, "item": item, "order": order, "priority": priority}
    return text[0].upper() + text[1:], truth
>>>>>>> shell
