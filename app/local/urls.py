"""Where the servers of a home are, as `up` wrote it down: databases and the dashboard."""

import json
from pathlib import Path

from app.settings import Settings

SERVERS = "servers.json"
ADDRESS = "address"


def write_servers(home: Path, *, database_url: str, redis_url: str) -> None:
    """Record the URLs for the other programs of this home (mode 0600: one holds a password)."""
    path = home / SERVERS
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps({"database_url": database_url, "redis_url": redis_url}))
    temporary.replace(path)


def settings_with_servers(settings: Settings | None = None) -> Settings:
    """Return the settings with the embedded servers' URLs where none are given."""
    settings = settings or Settings()
    path = settings.home / SERVERS
    if not path.exists():
        return settings
    known = json.loads(path.read_text())
    return settings.model_copy(
        update={name: url for name, url in known.items() if getattr(settings, name) is None}
    )


def write_address(settings: Settings) -> None:
    """Record where the dashboard of this home is, for the command line."""
    (settings.home / ADDRESS).write_text(settings.own_address + "\n")


def address_of(settings: Settings) -> str:
    """Return where the API of a home is (or would be) served."""
    if settings.url is not None:
        return settings.url.rstrip("/")
    path = settings.home / ADDRESS
    return path.read_text().strip() if path.is_file() else settings.own_address
