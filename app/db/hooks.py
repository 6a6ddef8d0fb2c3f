"""Signals that leave only after the commit: kept in the session, sent by the edge that commits.

SQLAlchemy's own `after_commit` also fires when a savepoint is released, so it is not used.
"""

from typing import Literal

from sqlalchemy.orm import Session

SignalKind = Literal["wake", "nudge"]
Signal = tuple[SignalKind, str]


def signal_after_commit(session: Session, kind: SignalKind, name: str) -> None:
    """Ask for one signal (a stream to wake, a queue to nudge) once this transaction is durable."""
    session.info.setdefault("signals", set()).add((kind, name))


def take_signals(session: Session) -> set[Signal]:
    """Return and clear what was asked for; called by the edge right after its commit."""
    signals: set[Signal] = session.info.pop("signals", set())
    return signals
