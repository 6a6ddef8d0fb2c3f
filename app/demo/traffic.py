"""The demo's ticket sets, drawn so that an import splits them into exactly the planned sizes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.demo.setting import TicketPlan
from app.demo.tickets import made_tickets
from app.specs.conversation import Conversation, Split
from app.specs.split import side

_PLENTY = 1_000_000
"""More tickets than any plan draws; they are made one by one."""


@dataclass(frozen=True, slots=True)
class DrawnTickets:
    """Tune and traffic share no group. `traffic` is in log order; every ticket knows its truth.

    `referenced`: the ids of the traffic whose truth the log will carry, all of validation and test
    and the first `labelled` of train.
    """

    tune: tuple[Conversation, ...]
    traffic: tuple[Conversation, ...]
    referenced: frozenset[str]

    @property
    def references(self) -> dict[str, str]:
        """Return the truth by ticket text, of those whose truth the log will carry."""
        known = (c.messages for c in self.traffic if c.id in self.referenced)
        return {said[-2].content: said[-1].reference or "" for said in known}

    def of(self, split: Split) -> tuple[Conversation, ...]:
        """Return the traffic of one side, in log order."""
        return tuple(c for c in self.traffic if c.split == split)


def draw(plan: TicketPlan) -> DrawnTickets:
    """Return the tickets of a plan; the same plan gives the same tickets."""
    tune = tuple(made_tickets(plan.tune, seed=plan.tune_seed))
    wanted: dict[Split, int] = {
        "train": plan.train,
        "validation": plan.validation,
        "test": plan.test,
    }
    traffic: list[Conversation] = []
    groups = frozenset(c.group for c in tune)
    for ticket in made_tickets(_PLENTY, seed=plan.traffic_seed, avoid=groups):
        split = side(
            ticket.group, validation_share=plan.validation_share, test_share=plan.test_share
        )
        if wanted[split]:
            wanted[split] -= 1
            traffic.append(ticket.model_copy(update={"split": split}))
        if not any(wanted.values()):
            break
    train = [c for c in traffic if c.split == "train"]
    held_out = [c for c in traffic if c.split != "train"]
    referenced = frozenset(c.id for c in (*train[: plan.labelled], *held_out))
    return DrawnTickets(tune=tune, traffic=tuple(traffic), referenced=referenced)


def write_tuning(path: Path, tickets: Iterable[Conversation]) -> None:
    """Write tickets with their truth as fine-tune JSONL: what the teacher is tuned on."""
    with path.open("w", encoding="utf-8") as file:
        for ticket in tickets:
            messages = [{"role": m.role, "content": m.content} for m in ticket.messages]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def write_prompts(path: Path, tickets: Iterable[Conversation]) -> None:
    """Write tickets without their answers as JSONL of chat requests: what the teacher answers."""
    with path.open("w", encoding="utf-8") as file:
        for ticket in tickets:
            messages = [{"role": m.role, "content": m.content} for m in ticket.messages[:-1]]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
