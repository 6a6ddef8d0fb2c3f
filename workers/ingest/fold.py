"""Prefix folding: calls that repeat a conversation's history become one conversation."""

from dataclasses import dataclass, replace
from hashlib import blake2b

from app.specs.conversation import Conversation, Message
from workers.ingest.canonical import chain, link
from workers.ingest.values import LoggedCall

MIN_OVERLAP = 3  # messages two history windows must share to be one conversation


@dataclass(frozen=True, slots=True)
class _Produced:
    """What a log line said about the turn it produced."""

    message: Message
    reference: str | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A longest chain: messages, hash of each alone, and its last call."""

    call: LoggedCall
    messages: tuple[Message, ...]
    keys: tuple[bytes, ...]
    system: bytes


class Folder:
    """Takes calls one by one; keeps the messages of leaves only, so memory follows conversations."""

    def __init__(self) -> None:
        self._produced: dict[bytes, _Produced] = {}
        self._inner: set[bytes] = set()
        self._leaves: dict[bytes, LoggedCall] = {}

    def add(self, call: LoggedCall) -> bool:
        """Add a call; False when it is an exact duplicate of an earlier one."""
        hashes = chain((*call.request, call.answer))
        end = hashes[-1]
        known = self._produced.get(end)
        if known is not None:
            if known.reference is None and call.reference is not None:
                self._produced[end] = replace(known, reference=call.reference)
            return False
        self._produced[end] = _Produced(call.answer, call.reference, call.flags)
        for inner in hashes[:-1]:
            self._inner.add(inner)
            self._leaves.pop(inner, None)
        if end not in self._inner:
            self._leaves[end] = call
        return True

    @property
    def folded(self) -> int:
        """Calls that are a prefix of another call."""
        return sum(end in self._inner for end in self._produced)

    @property
    def targets(self) -> int:
        return sum(not produced.flags for produced in self._produced.values())

    def conversations(self) -> list[Conversation]:
        """Give every conversation in the order of its id; windows of one history are joined."""
        leaves = [self._leaf(call) for call in self._leaves.values()]
        leaves.sort(key=lambda leaf: (leaf.system, leaf.keys))
        found = {item.id: item for item in map(_conversation, _join_windows(leaves))}
        return [found[key] for key in sorted(found)]

    def _leaf(self, call: LoggedCall) -> _Leaf:
        raw = (*call.request, call.answer)
        hashes = chain(raw)
        marked = tuple(self._mark(m, h) for m, h in zip(raw, hashes, strict=True))
        system = b"".join(link(b"", m) for m in raw if m.role == "system")
        keys = tuple(link(b"", m) for m in raw if m.role != "system")
        return _Leaf(call, marked, keys, system)

    def _mark(self, message: Message, end: bytes) -> Message:
        produced = self._produced.get(end)
        if produced is None or message.role != "assistant":
            return message
        return produced.message.model_copy(
            update={
                "is_target": not produced.flags,
                "flags": produced.flags,
                "reference": produced.reference,
            }
        )


def _overlap(before: _Leaf, after: _Leaf) -> int:
    """How many messages at the end of `before` begin `after`; 0 when too few."""
    top = min(len(before.keys) - 1, len(after.keys) - 1)
    for size in range(top, MIN_OVERLAP - 1, -1):
        if before.keys[-size:] == after.keys[:size]:
            return size
    return 0


def _predecessors(leaves: list[_Leaf]) -> dict[int, tuple[int, int]]:
    ends: dict[tuple[bytes, bytes], list[int]] = {}
    for at, leaf in enumerate(leaves):
        ends.setdefault((leaf.system, leaf.keys[-1]), []).append(at)
    found: dict[int, tuple[int, int]] = {}
    for at, leaf in enumerate(leaves):
        best = (0, -1)
        for key in dict.fromkeys(leaf.keys[MIN_OVERLAP - 1 : -1]):
            for other in ends.get((leaf.system, key), [])[:64]:
                if other != at:
                    best = max(best, (_overlap(leaves[other], leaf), other))
        if best[0]:
            found[at] = (best[1], best[0])
    return found


def _join_windows(leaves: list[_Leaf]) -> list[_Leaf]:
    before = _predecessors(leaves)
    used = {other for other, _ in before.values()}
    joined: list[_Leaf] = []
    for at, leaf in enumerate(leaves):
        if at in used:
            continue
        seen, here, whole = {at}, at, leaf
        while here in before and before[here][0] not in seen:
            here, size = before[here]
            seen.add(here)
            whole = _prepend(leaves[here], whole, size)
        joined.append(whole)
    return joined


def _prepend(first: _Leaf, then: _Leaf, size: int) -> _Leaf:
    rest = [m for m in then.messages if m.role != "system"][size:]
    return replace(then, messages=(*first.messages, *rest), keys=(*first.keys, *then.keys[size:]))


def _conversation(leaf: _Leaf) -> Conversation:
    first = next((link(b"", m) for m in leaf.messages if m.role == "user"), b"")
    return Conversation(
        messages=leaf.messages,
        tools=leaf.call.tools,
        metadata=dict(leaf.call.metadata),
        source=leaf.call.source,
        group=blake2b(leaf.system + first, digest_size=16).hexdigest(),
    )
