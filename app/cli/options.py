"""Options that many commands share, and the settings of a home."""

from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

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

    A `--home` before the command counts where the command has none of its own.
    """
    home = home or HOME_BEFORE.get()
    settings = Settings() if home is None else Settings(home=home)
    changed: dict[str, object] = {"home": settings.home.absolute()}
    if port is not None:
        changed["port"] = port
    return settings.model_copy(update=changed)
