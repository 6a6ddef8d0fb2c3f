"""What every command prints: tables or JSON, one error style, and the exit codes."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy.exc import OperationalError

from app.client.rest import Refused, Unreachable
from app.db.migrate import TableLocked
from app.local.home import HomeInUseError
from app.local.postgres import LocalServerError
from app.main import InsecureBind
from app.settings import MissingServerError

PIPED_WIDTH = 140
"""Columns of what is not shown in a terminal: a table in a file need not fit one."""
console = Console()
if not console.is_terminal:
    console.width = PIPED_WIDTH
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class Exit(IntEnum):
    """Exit codes for scripts."""

    OK = 0
    FAILED = 1
    """The thing asked for failed, or its state does not allow it."""
    WRONG_USE = 2
    """Arguments that cannot work: a name that is not there, a value out of bounds."""
    UNREACHABLE = 3
    """Nothing serves the home, the token is refused, or another command holds the home."""


EXIT_CODES_HELP = (
    "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 the home cannot be reached or is in use."
)
WRONG_USE_STATUSES = frozenset({400, 404, 413, 422})


class CommandFailed(Exception):
    """What was waited for failed; the sentence says what and where to look."""


class WrongUse(Exception):
    """Arguments that cannot work."""


def fail(message: str, code: Exit) -> typer.Exit:
    """Print a sentence on stderr and return the exit to raise."""
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(code)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn every named failure into a sentence and an exit code."""
    try:
        yield
    except (Unreachable, HomeInUseError, LocalServerError, MissingServerError) as error:
        raise fail(str(error), Exit.UNREACHABLE) from error
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise fail(f"The database does not answer: {reason}", Exit.UNREACHABLE) from error
    except InsecureBind as error:
        raise fail(str(error), Exit.WRONG_USE) from error
    except Refused as error:
        wrong = error.status in WRONG_USE_STATUSES
        raise fail(str(error), Exit.WRONG_USE if wrong else Exit.FAILED) from error
    except WrongUse as error:
        raise fail(str(error), Exit.WRONG_USE) from error
    except (CommandFailed, TableLocked) as error:
        raise fail(str(error), Exit.FAILED) from error


def print_json(value: Any) -> None:
    """Print plain JSON on stdout, without colours or wrapping."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print a table, or the sentence for none."""
    if not rows:
        console.print(empty, markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
