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
