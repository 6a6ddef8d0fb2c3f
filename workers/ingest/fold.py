"""Prefix folding: calls that repeat a conversation's history become one conversation.

A call's messages are a path in the tree of all messages; a call whose path another one goes on
from is part of that conversation, what no call goes on from (a leaf) is a conversation. Every turn
that a log line produced is a target once, in the longest conversation that holds it.
"""

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from app.specs.conversation import Conversation, Message, ToolCall
from app.specs.split import root_group
from workers.ingest.dedup import Facts, Produced, facts_of
from workers.ingest.joins import Joins, join
from workers.ingest.trie import ROOT, Spool, Trie
from workers.ingest.values import LoggedCall

_Turn = tuple[int, list[int]]
"""A node, and the produced nodes that say the same at this place."""


class Folder:
    """Takes calls in any order and gives their conversations: the order changes nothing they say.

    Memory: about 200 bytes a distinct message and 400 a distinct call; texts lie in an unnamed
    file in `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._spool = Spool(folder)
        self._trie = Trie(self._spool)
        self._produced: dict[int, Produced] = {}
        self._tools: dict[bytes, int] = {}
        self._facts: dict[Facts, Facts] = {}
        self._lines = 0
        self._folded: int | None = None

    def close(self) -> None:
        self._spool.close()

    def add(self, call: LoggedCall) -> bool:
        """Add a call; False when it repeats an earlier one, question and answer alike."""
        self._lines += 1
        node = ROOT
        for message in call.messages:
            taught = message.is_target or (message.role == "assistant" and bool(message.flags))
            node = self._trie.insert(node, message, produced=taught)
            if taught:
                self._say(node, Produced(facts_of(message, message.flags)))
        for other in call.other_answers:
            flags = tuple(sorted({*call.flags, *other.flags} - set(call.answer.flags)))
            leaf = self._trie.insert(node, other, produced=True)
            self._say(leaf, Produced(facts_of(other, flags)))
        end = self._trie.insert(node, call.answer, produced=True)
        said = Produced(
            facts_of(call.answer, call.flags),
            reference=call.reference,
            ended=True,
            line=self._lines,
            place=call.place,
            tools=self._put_tools(call),
            metadata=self._spool.put(orjson.dumps(dict(call.metadata))) if call.metadata else -1,
            session=call.session,
        )
        return not self._say(end, said)

    def _say(self, node: int, said: Produced) -> bool:
        said.facts = self._facts.setdefault(said.facts, said.facts)  # few differ: keep each once
        known = self._produced.get(node)
        if known is not None:
            return known.merge(said)
        self._produced[node] = said
        return False

    def _put_tools(self, call: LoggedCall) -> bytes:
        if not call.tools:
            return b""
        data = orjson.dumps(call.tools, option=orjson.OPT_SORT_KEYS)
        digest = blake2b(data, digest_size=16).digest()
        if digest not in self._tools:
            self._tools[digest] = self._spool.put(data)
        return digest

    @property
    def folded(self) -> int:
        """Calls that are part of another call's conversation; known once all are given."""
        if self._folded is None:
            raise RuntimeError("folded is known after conversations() has been read to its end")
        return self._folded

    def conversations(self) -> Iterator[Conversation]:
        """Yield every conversation, in the order of the lines that ended them."""
        leaves = [node for node in self._produced if not self._trie.children[node]]
        leaves.sort(key=self._rank)
        leaves = self._without_flagged_branches(leaves)
        sessions = {n: s for n in leaves if (s := self._produced[n].session) is not None}
        joins = join(self._trie, leaves, sessions)
        final = joins.final
        leaves = [leaf for leaf in leaves if leaf not in final]
        owner = self._owners(leaves, joins)
        ended = sum(said.ended for said in self._produced.values())
        self._folded = ended - sum(self._produced[leaf].ended for leaf in leaves)
        leaves.sort(key=lambda leaf: (self._produced[leaf].line, leaf))
        for leaf in leaves:
            yield self._conversation(leaf, joins, owner)

    def _rank(self, leaf: int) -> tuple[int, bytes]:
        """Longest first, then by what is said: an order that lines have no part in."""
        head, nodes = self._trie.path(leaf)
        said = array("Q", [self._trie.said[node] for node in (*head, *nodes)])
        return -len(nodes), blake2b(said.tobytes(), digest_size=16).digest()

    def _is_target(self, node: int) -> bool:
        said = self._produced.get(node)
        return said is not None and said.is_target

    def _without_flagged_branches(self, leaves: list[int]) -> list[int]:
        """Leave out a branch that teaches nothing of its own (a cut answer, an image's copy)."""
        alive = list(self._trie.children)
        kept: list[int] = []
        for leaf in leaves:
            node = leaf
            while not self._is_target(node) and alive[self._trie.parent[node]] == 1:
                node = self._trie.parent[node]
                if node in self._trie.template:
                    break
            above = self._trie.parent[node]
            if self._is_target(node) or node in self._trie.template or above in self._trie.template:
                kept.append(leaf)
            else:
                alive[above] -= 1
        return kept

    def _turns(self, leaf: int, joins: Joins) -> list[_Turn]:
        """Return the nodes after the system prompts, with all that leaves in them produced."""
        chain = [(leaf, 0)]
        while chain[-1][0] in joins.before:
            chain.append(joins.before[chain[-1][0]])
        turns: list[_Turn] = []
        for at in range(len(chain) - 1, -1, -1):
            link = chain[at][0]
            start = chain[at + 1][1] if at + 1 < len(chain) else 0
            begin = self._offset(turns, chain, at, start)
            self._lay(turns, link, begin)
            inner = [(other, begin + offset) for other, offset in joins.inside.get(link, ())]
            while inner:
                other, offset = inner.pop()
                self._lay(turns, other, offset)
                deeper = joins.inside.get(other, ())
                inner += [(leaf_, offset + more) for leaf_, more in deeper]
        return turns

    def _offset(self, turns: list[_Turn], chain: list[tuple[int, int]], at: int, start: int) -> int:
        """Where a link begins: `start` messages after the beginning of the link before it."""
        if at + 1 == len(chain):
            return 0
        _, nodes = self._trie.path(chain[at + 1][0])
        return len(turns) - len(nodes) + start

    def _lay(self, turns: list[_Turn], leaf: int, begin: int) -> None:
        _, nodes = self._trie.path(leaf)
        for at, node in enumerate(nodes, begin):
            if at == len(turns):
                turns.append((node, []))
            if node in self._produced and node not in turns[at][1]:
                turns[at][1].append(node)

    def _owners(self, leaves: list[int], joins: Joins) -> dict[int, int]:
        """Map each produced node to the leaf whose conversation teaches it; `leaves` ranked."""
        owner: dict[int, int] = {}
        for leaf in leaves:
            for _, producers in self._turns(leaf, joins):
                if not any(node in owner for node in producers):
                    owner.update((n, leaf) for n in producers if self._is_target(n))
        return owner

    def _conversation(self, leaf: int, joins: Joins, owner: dict[int, int]) -> Conversation:
        head, _ = self._trie.path(leaf)
        turns: list[_Turn] = [(node, []) for node in head]
        turns += self._turns(leaf, joins)
        messages = self._messages(leaf, turns, owner)
        said = self._produced[leaf]
        metadata = orjson.loads(self._spool.get(said.metadata)) if said.metadata >= 0 else {}
        tools = orjson.loads(self._spool.get(self._tools[said.tools])) if said.tools else []
        root = self._trie.template[head[-1] if head else ROOT]
        user = next((m.content for m in messages if m.role == "user"), "")
        return Conversation(
            messages=messages,
            tools=tuple(tools),
            metadata=metadata,
            source=said.place,
            group=root_group(root, user),
        )

    def _messages(
        self, leaf: int, turns: list[_Turn], owner: dict[int, int]
    ) -> tuple[Message, ...]:
        """Give the messages with call ids numbered through: servers renumber them in every call."""
        messages: list[Message] = []
        made, answerable = 0, list[str]()
        for node, producers in turns:
            own = next((n for n in producers if owner.get(n) == leaf), node)
            fields = dict(self._trie.message(own))
            if calls := fields.pop("tool_calls", None):
                answerable = [f"call_{made + at}" for at in range(len(calls))]
                made += len(calls)
                fields["tool_calls"] = tuple(
                    ToolCall(name=name, arguments=arguments, id=identifier)
                    for (name, arguments, _), identifier in zip(calls, answerable, strict=True)
                )
            if fields["role"] == "tool":
                if all(m.role == "system" for m in messages):
                    continue  # the result of a call that the history window cut off
                at = int(fields.pop("tool_call_id", 0))
                fields["tool_call_id"] = answerable[at] if at < len(answerable) else None
            fields["flags"] = tuple(fields.get("flags", ()))
            messages.append(Message(**{**fields, **self._taught(leaf, producers, owner)}))
        return tuple(messages)

    def _taught(self, leaf: int, producers: list[int], owner: dict[int, int]) -> dict[str, Any]:
        """Return what is known of a turn as a target; nothing for one no line produced."""
        if not producers:
            return {}
        said = [self._produced[node] for node in producers]
        facts: Facts = min(item.facts for item in said)
        own = any(owner.get(node) == leaf for node in producers)
        flags = facts[1] if facts[0] or own else ("other_branch",)
        references = [item.reference for item in said if item.reference is not None]
        return {
            "is_target": own,
            "reference": min(references, default=None) if own else None,
            "flags": flags,
            "model": facts[2] or None,
            "finish_reason": facts[3] or None,
        }
