"""Table state in the URL: sort, filters and keyset pages of a list."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import Depends
from sqlalchemy import ColumnElement, DateTime, Select, and_, or_
from sqlalchemy.sql.elements import UnaryExpression

from app.errors import InvalidInput
from app.web.filters import with_query

Order = Literal["asc", "desc"]
Rows = TypeVar("Rows", bound=Select[*tuple[Any, ...]])
PAGE_SIZE = 50
_KEY_PARTS = 2


@dataclass(frozen=True, slots=True)
class SortColumn:
    """A column people may sort by; not nullable, or wrapped in coalesce."""

    key: str
    column: Any
    first: Order = "asc"
    """Direction of the first click."""


@dataclass(frozen=True, slots=True)
class TableState:
    """What the URL says, checked: unknown sort words and broken cursors are no state."""

    path: str
    query: dict[str, str]
    sort: SortColumn
    order: Order
    after: tuple[Any, int] | None
    filters: dict[str, str] = field(default_factory=dict)

    def sort_link(self, column: SortColumn) -> str:
        """Return the address that sorts by `column`, turning round when it already does."""
        turned: Order = "desc" if self.order == "asc" else "asc"
        order = turned if column.key == self.sort.key else column.first
        return with_query(self.path, self.query, sort=column.key, order=order, after=None)

    def aria_sort(self, column: SortColumn) -> str:
        if column.key != self.sort.key:
            return "none"
        return "ascending" if self.order == "asc" else "descending"

    def next_link(self, last_value: Any, last_id: int) -> str:
        return with_query(self.path, self.query, after=encode_key(last_value, last_id))

    def without(self, name: str) -> str:
        """Return the address with one filter dropped."""
        return with_query(self.path, self.query, **{name: None, "after": None})


@dataclass(frozen=True, slots=True)
class Page:
    """One page of rows and the address of the next one."""

    rows: Sequence[Any]
    next_url: str | None


def encode_key(value: Any, row_id: int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([value, row_id])).decode().rstrip("=")


def decode_key(text: str) -> tuple[Any, int]:
    try:
        found = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, binascii.Error) as error:
        raise InvalidInput("The page address is damaged. Open the list again.") from error
    if not (isinstance(found, list) and len(found) == _KEY_PARTS and isinstance(found[1], int)):
        raise InvalidInput("The page address is damaged. Open the list again.")
    return found[0], found[1]


class UnknownOrder(InvalidInput):
    """The address asks for an order that the list does not have; a page goes to `instead`."""

    def __init__(self, name: str, given: str, known: Sequence[str], instead: str) -> None:
        words = ", ".join(known[:-1]) + f" or {known[-1]}" if len(known) > 1 else known[0]
        sentence = f"Must be {words}, not “{given}”."
        super().__init__(f"{name}: {sentence}", fields={name: sentence})
        self.instead = instead


def _list_order(sort: str = "", order: str = "") -> dict[str, str]:
    """Read how the API is asked to sort: by a word of the list, `asc` or `desc`."""
    return {"sort": sort, "order": order}


ListOrder = Annotated[dict[str, str], Depends(_list_order)]


def read_state(
    path: str,
    query: Mapping[str, str],
    columns: Sequence[SortColumn],
    *,
    filters: Sequence[str] = (),
) -> TableState:
    """Read sort, order, cursor and the named filters from the URL; the first column is default.

    Raises UnknownOrder, and InvalidInput for a broken cursor.
    """
    known = {"sort": [column.key for column in columns], "order": ["asc", "desc"]}
    for name, words in known.items():
        if query.get(name) and query[name] not in words:
            plain = {k: v for k, v in query.items() if k in filters and v}
            raise UnknownOrder(name, query[name], words, with_query(path, plain))
    sort = next((c for c in columns if c.key == query.get("sort")), columns[0])
    given = query.get("order")
    order: Order = "asc" if given == "asc" else "desc" if given == "desc" else sort.first
    after = decode_key(query["after"]) if query.get("after") else None
    found = {name: query[name] for name in filters if query.get(name)}
    kept = {k: v for k, v in query.items() if k in {"sort", "order", *filters} and v}
    return TableState(path, kept, sort, order, after, found)


def _typed(column: ColumnElement[Any], value: Any) -> Any:
    """Return a cursor's value as the column has it: JSON knows no times."""
    if not isinstance(column.type, DateTime):
        return value
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput("The page address is damaged. Open the list again.") from error


def ordering(state: TableState, id_column: Any) -> list[UnaryExpression[Any]]:
    """Return what a list is ordered by; ties by id."""
    columns = (state.sort.column, id_column)
    return [c.desc() if state.order == "desc" else c.asc() for c in columns]


def keyset(
    statement: Rows, state: TableState, id_column: Any, *, limit: int = PAGE_SIZE + 1
) -> Rows:
    """Add order and cursor: strictly beyond the last row, ties broken by id. One row more."""
    column: ColumnElement[Any] = state.sort.column
    down = state.order == "desc"
    if state.after is not None:
        value, row_id = _typed(column, state.after[0]), state.after[1]
        beyond = column < value if down else column > value
        id_beyond = id_column < row_id if down else id_column > row_id
        statement = statement.where(or_(beyond, and_(column == value, id_beyond)))
    return statement.order_by(*ordering(state, id_column)).limit(limit)


def page(rows: Sequence[Any], state: TableState, key: Any) -> Page:
    """Cut the extra row off; `key(row)` gives (sort value, id) of the last row shown."""
    shown = rows[:PAGE_SIZE]
    more = len(rows) > PAGE_SIZE
    return Page(shown, state.next_link(*key(shown[-1])) if more else None)
