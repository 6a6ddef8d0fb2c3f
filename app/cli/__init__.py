"""The `stillhouse` command: serves a home, and drives it through the REST API."""

from app.cli.root import app

__all__ = ["app"]
