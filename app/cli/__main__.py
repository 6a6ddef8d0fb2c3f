"""`python -m app.cli`, which the launcher uses for its own programs."""

from app.cli.root import app

app()
