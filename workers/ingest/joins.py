"""The second pass: leaves that continue each other though their lines do not repeat each other.

A clock in the system prompt changes a history's first message, a history window cuts its oldest
turns: both hide that one call continues another. Sequences are compared by rolling hashes
(Σ said_i · B^(n−1−i) mod 2^61 − 1), every hit by its elements.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from workers.ingest.trie import MODULUS, Trie

_BASE = 0x1D_0B5F_2C6A_91E7
MIN_OVERLAP = 3
"""Messages two history windows must share: the fewest that hold a whole exchange."""
_MAX_STARTS = 64
"""Leaves that may share an opening and still be looked at as windows."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """A leaf's messages after its leading system prompts, and the hash of those as templates."""

    leaf: int
    template: int
    said: tuple[int, ...]

    def prefixes(self) -> list[int]:
        """Hash of the first n messages, for n from 0 to all."""
        hashes = [0]
        for value in self.said:
            hashes.append((hashes[-1] * _BASE + value) % MODULUS)
        return hashes


@dataclass(slots=True)
class Joins:
    """How leaves lie in each other. All keys and values are leaf nodes."""

    inside: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Leaf → leaves that lie wholly inside it, and where they begin."""
    swallowed: set[int] = field(default_factory=set)
    before: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Leaf → the leaf it continues, and how many of that one's messages come before it."""

    @property
    def final(self) -> set[int]:
        """Leaves that are no conversation of their own."""
        return self.swallowed | {other for other, _ in self.before.values()}


def sequence(trie: Trie, leaf: int) -> Sequence:
    head, nodes = trie.path(leaf)
    said = tuple(trie.said[node] for node in nodes)
    return Sequence(leaf, trie.template[head[-1] if head else 0], said)


def _sequences(trie: Trie, leaves: Iterable[int]) -> Iterator[Sequence]:
    return (sequence(trie, leaf) for leaf in leaves)


def _fold_variants(trie: Trie, leaves: list[int], joins: Joins) -> None:
    """Swallow each leaf that is a proper prefix of another under the same system template.

    Of several that hold it the longest takes it, so that each logged turn is taught once.
    """
    whole: dict[tuple[int, int, int], list[int]] = {}
    for item in _sequences(trie, leaves):
        key = (item.template, len(item.said), item.prefixes()[-1])
        whole.setdefault(key, []).append(item.leaf)
    holders: dict[tuple[int, int, int], tuple[int, tuple[int, ...], int]] = {}
    for item in _sequences(trie, leaves):
        for size, value in enumerate(item.prefixes()[:-1]):
            key = (item.template, size, value)
            if size and key in whole:
                holder = (-len(item.said), item.said, item.leaf)
                holders[key] = min(holders.get(key, holder), holder)
    for key, (_, said, holder_leaf) in holders.items():
        for other in whole[key]:
            if sequence(trie, other).said == said[: key[1]]:
                joins.inside.setdefault(holder_leaf, []).append((other, 0))
                joins.swallowed.add(other)


def _openings(trie: Trie, leaves: list[int]) -> dict[tuple[int, ...], list[Sequence]]:
    starts: dict[tuple[int, ...], list[Sequence]] = {}
    for item in _sequences(trie, leaves):
        if len(item.said) >= MIN_OVERLAP:
            key = (item.template, *item.said[:MIN_OVERLAP])
            starts.setdefault(key, []).append(item)
    return starts


def _join_windows(trie: Trie, leaves: list[int], sessions: dict[int, str], joins: Joins) -> None:
    """Find for each leaf the one whose end it begins with (or the one it lies inside of)."""
    starts = _openings(trie, leaves)
    best: dict[int, tuple[int, tuple[int, ...], int, int]] = {}
    holders: dict[int, tuple[tuple[int, ...], int, int]] = {}
    for item in _sequences(trie, leaves):
        for at in range(1, len(item.said) - MIN_OVERLAP + 1):
            key = (item.template, *item.said[at : at + MIN_OVERLAP])
            found = starts.get(key, ())
            for other in found if len(found) <= _MAX_STARTS else ():
                size = min(len(item.said) - at, len(other.said))
                if other.leaf == item.leaf or item.said[at : at + size] != other.said[:size]:
                    continue
                if sessions.get(item.leaf, "") != sessions.get(other.leaf, ""):
                    continue
                if size == len(other.said):
                    holder = (item.said, item.leaf, at)
                    holders[other.leaf] = min(holders.get(other.leaf, holder), holder)
                else:
                    candidate = (-size, item.said, item.leaf, at)
                    best[other.leaf] = min(best.get(other.leaf, candidate), candidate)
    for leaf, (_, holder_leaf, at) in holders.items():
        joins.inside.setdefault(holder_leaf, []).append((leaf, at))
        joins.swallowed.add(leaf)
    joins.before = {
        leaf: (other, at)
        for leaf, (_, _, other, at) in best.items()
        if leaf not in holders and other not in holders
    }
    _break_circles(trie, joins.before)


def _break_circles(trie: Trie, before: dict[int, tuple[int, int]]) -> None:
    """Cut each circle of continuations at the leaf whose messages sort first."""
    done: set[int] = set()
    for start in list(before):
        path: list[int] = []
        here = start
        while here in before and here not in done:
            done.add(here)
            path.append(here)
            here = before[here][0]
        if here in path:
            circle = path[path.index(here) :]
            del before[min(circle, key=lambda leaf: sequence(trie, leaf).said)]


def join(trie: Trie, leaves: list[int], sessions: dict[int, str]) -> Joins:
    """Return how leaves continue or hold each other.

    `sessions` names the session of those leaves that have one: different sessions never join.
    """
    joins = Joins()
    _fold_variants(trie, leaves, joins)
    rest = [leaf for leaf in leaves if leaf not in joins.swallowed]
    _join_windows(trie, rest, sessions, joins)
    return joins
