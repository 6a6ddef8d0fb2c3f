"""Options that many commands share, and the settings of a home."""

from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.cli.output import Exit, fail
from app.settings import Settings

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder; else STILLHOUSE_HOME, else ./.stillhouse."),
]
Project = Annotated[str, typer.Option("--project", help="The project's slug or name.")]
AnyProject = Annotated[
    str | None,
    typer.Option("--project", help="The project's slug or name; not needed where there is one."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end; fail when it fails.")]
HOME_BEFORE: ContextVar[Path | None] = ContextVar("home_before", default=None)
"""What `stillhouse --home DIR …` named before the command."""


def settings_for(home: Path | None, *, port: int | None = None) -> Settings:
    """Return the settings of a home folder (absolute, so that children agree).

    A `--home` before the command counts where the command has none of its own. A variable that
    cannot be read and a home that is a file end the command with a sentence.
    """
    home = home or HOME_BEFORE.get()
    try:
        settings = Settings() if home is None else Settings(home=home)
    except ValidationError as error:
        raise fail(_what_is_wrong(error), Exit.WRONG_USE) from error
    except SettingsError as error:
        raise fail(f"{error}: it takes JSON.", Exit.WRONG_USE) from error
    if settings.home.exists() and not settings.home.is_dir():
        raise fail(f"{settings.home} is not a folder: choose another home.", Exit.WRONG_USE)
    changed: dict[str, object] = {"home": settings.home.absolute()}
    if port is not None:
        changed["port"] = port
    return settings.model_copy(update=changed)


def _what_is_wrong(error: ValidationError) -> str:
    """Name each variable that cannot be read and why; its value may be a secret."""
    found = []
    for item in error.errors(include_input=False, include_url=False):
        name = str(item["loc"][0]) if item["loc"] else "settings"
        variable = name if name.isupper() else f"STILLHOUSE_{name.upper()}"
        found.append(f"{variable}: {item['msg']}.")
    return " ".join(found)
