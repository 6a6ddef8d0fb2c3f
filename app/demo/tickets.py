"""A made task: support tickets → one JSON object. Seeded, with ground truth, short on purpose."""

import json
import random
from collections.abc import Collection, Iterator
from typing import Any

from app.specs.conversation import Conversation, Message
from app.specs.split import group_of

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


def made_tickets(
    count: int, *, seed: int = 0, avoid: Collection[str] = ()
) -> Iterator[Conversation]:
    """Yield `count` different conversations: system, ticket, JSON answer (also as reference).

    The answer's keys are intent, item, order (a number or null) and priority. Under SmolLM2's
    tokenizer a conversation takes at most 96 tokens and its answer at most 24. No two share a
    group, and none has a group in `avoid`.
    """
    rng = random.Random(seed)  # noqa: S311 - a reproducible data set, not a secret
    seen: set[str] = set()
    while len(seen) < count:
        ticket, truth = _ticket(rng)
        answer = json.dumps(truth, separators=(",", ":"))
        messages = (
            Message(role="system", content=SYSTEM),
            Message(role="user", content=ticket),
            Message(role="assistant", content=answer, reference=answer, is_target=True),
        )
        group = group_of(messages)
        if group in seen or group in avoid:
            continue
        seen.add(group)
        yield Conversation(messages=messages, group=group)


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
