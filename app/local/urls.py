"""Where the servers of a home are: `servers.json`, written by `up`, fills what is not set."""

import json
from pathlib import Path

from app.settings import Settings

SERVERS = "servers.json"


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
