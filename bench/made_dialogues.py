"""Made support dialogues with tool calls: what the made logs are logs of."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

STYLES = ("plain", "plain", "plain", "plain", "parts", "legacy", "clock", "window")
_WORDS = (
    "order refund parcel invoice account delivery address payment voucher late broken missing "
    "change cancel return check update confirm please today store size colour shoes lamp chair "
    "café naïve 東京 über status number item price card bank week month reply email phone"
).split()
_SYSTEM = "You are the assistant of shop {shop}. Use the tools for every look-up. Be brief."
_FUNCTION = {
    "name": "find_order",
    "description": "Look an order up by its number",
    "parameters": {"type": "object", "properties": {"number": {"type": "string"}}},
}


def sentence(random: Random, words: int) -> str:
    return " ".join(random.choices(_WORDS, k=words)).capitalize() + "."


@dataclass(frozen=True)
class Dialogue:
    """Messages from the system prompt to the last answer, and how its client logs them."""

    number: int
    style: str
    messages: tuple[dict[str, Any], ...]
    user: str
    tools: dict[str, Any]

    def calls(self) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """Yield each answer with the history it was given, as a client sends it."""
        for at, message in enumerate(self.messages):
            if message["role"] == "assistant":
                answer = {key: value for key, value in message.items() if key != "role"}
                yield list(self.messages[:at]), answer

    def reference(self, turn: int) -> str:
        return f"truth {self.number}.{turn}"


def _tool_turn(random: Random, *, legacy: bool) -> list[dict[str, Any]]:
    """Give the call of a tool and its result."""
    arguments = {"number": str(random.randrange(10**6)), "with_items": random.random() < 0.5}
    if random.random() < 0.5:
        arguments = dict(reversed(arguments.items()))
    text = json.dumps(arguments)
    result = json.dumps({"status": random.choice(_WORDS), "paid": random.randrange(500)})
    call = {"name": "find_order", "arguments": text}
    if legacy:
        return [
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "find_order", "content": result},
        ]
    identifier = f"call_{random.getrandbits(64):016x}"
    made = {"id": identifier, "type": "function", "function": call}
    return [
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": identifier, "content": result},
    ]


def dialogue(random: Random, number: int) -> Dialogue:
    """Make a dialogue of one to eight exchanges; its first question names `number`: all differ."""
    style = random.choice(STYLES)
    system = {"role": "system", "content": _SYSTEM.format(shop=random.choice("ABCDEF"))}
    messages: list[dict[str, Any]] = [system]
    for turn in range(random.randrange(1, 9)):
        asked = f"{sentence(random, random.randrange(4, 30))} Case {number}-{turn}."
        messages.append({"role": "user", "content": asked})
        if random.random() < 0.25:
            messages += _tool_turn(random, legacy=style == "legacy")
        answer = f"{sentence(random, random.randrange(6, 60))} ({random.getrandbits(40):x})"
        messages.append({"role": "assistant", "content": answer})
    function: dict[str, Any] = {"functions": [_FUNCTION]}
    tools: dict[str, Any] = {"tools": [{"type": "function", "function": _FUNCTION}]}
    shown = function if style == "legacy" else tools
    return Dialogue(number, style, tuple(messages), f"u_{number:06d}", shown)
