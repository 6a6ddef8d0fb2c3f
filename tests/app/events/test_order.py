"""Ids become visible in order, whoever writes at once: one cursor misses nothing."""

import threading
import time

from sqlalchemy.orm import Session, sessionmaker

from app.events.append import append, write_pending
from app.events.queries import events_after

STREAMS = ("run:1", "cache:7")
Factory = sessionmaker[Session]


class Reader:
    """A viewer: one cursor over two streams."""

    def __init__(self, factory: Factory) -> None:
        self.factory, self.cursor, self.seen = factory, 0, list[str]()

    def read(self) -> list[str]:
        with self.factory() as session:
            for found in events_after(session, STREAMS, self.cursor):
                self.cursor = found.id
                self.seen.append(found.payload["text"])
        return self.seen


def test_an_event_that_commits_late_is_not_passed_by_a_viewer(factory: Factory) -> None:
    reader = Reader(factory)
    with factory() as slow:
        append(slow, "run:1", "log", {"text": "written first, committed last"})
        slow.flush()
        with factory.begin() as quick:
            append(quick, "cache:7", "log", {"text": "quick"})
        assert reader.read() == ["quick"]
        slow.commit()
    assert reader.read() == ["quick", "written first, committed last"]


def test_a_writer_waits_for_the_ids_of_another_to_be_committed(factory: Factory) -> None:
    reader = Reader(factory)

    def write() -> None:
        with factory.begin() as session:
            append(session, "cache:7", "log", {"text": "second"})

    other = threading.Thread(target=write)
    with factory() as first:
        append(first, "run:1", "log", {"text": "first"})
        write_pending(first)
        other.start()
        time.sleep(0.3)
        assert reader.read() == []
        first.commit()
    other.join(10)
    assert reader.read() == ["first", "second"]


def test_what_is_rolled_back_is_never_told(factory: Factory) -> None:
    reader = Reader(factory)
    with factory() as session:
        append(session, "run:1", "log", {"text": "undone"})
        session.rollback()
        append(session, "run:1", "log", {"text": "before"})
        with session.begin_nested() as savepoint:
            append(session, "run:1", "log", {"text": "undone too"})
            savepoint.rollback()
        with session.begin_nested():
            append(session, "run:1", "log", {"text": "inside"})
        session.commit()
    assert reader.read() == ["before", "inside"]
