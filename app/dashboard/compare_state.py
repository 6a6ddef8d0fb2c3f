"""What the address of the compare page says: rows, baseline, sort, diff-only. Nothing else does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlencode

from app.evaluations.schemas import Choice

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class CompareState:
    """The page's state; every control is a link to the address of another state."""

    path: str
    choice: Choice
    sort: str | None = None
    order: Order = "desc"
    diff_only: bool = True

    def link(self, **changes: Any) -> str:
        """Return the address of this state with `changes` (fields of the state)."""
        return replace(self, **changes).address

    def choose(self, **changes: Any) -> str:
        """Return the address with another choice (fields of `Choice`)."""
        return self.link(choice=self.choice.model_copy(update=changes))

    def sorted_by(self, key: str, first: Order) -> str:
        """Return the address that sorts by a column, turned round when it already does."""
        turned: Order = "desc" if self.order == "asc" else "asc"
        return self.link(sort=key, order=turned if key == self.sort else first)

    def aria_sort(self, key: str) -> str:
        if key != self.sort:
            return "none"
        return "ascending" if self.order == "asc" else "descending"

    @property
    def csv(self) -> str:
        joint = "&" if "?" in self.address else "?"
        return f"{self.address}{joint}format=csv"

    def pairs(self, without: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Return the query, for hidden fields of a form."""
        found = [("run", name) for name in self.choice.runs]
        found += [("evaluation", str(i)) for i in self.choice.evaluations]
        found += [("group", self.choice.group or ""), ("baseline", self.choice.baseline or "")]
        found += [("sort", self.sort or ""), ("order", self.order if self.sort else "")]
        found.append(("diff", "" if self.diff_only else "0"))
        return [(key, value) for key, value in found if value and key not in without]

    @property
    def address(self) -> str:
        query = urlencode(self.pairs())
        return f"{self.path}?{query}" if query else self.path
