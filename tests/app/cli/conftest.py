"""Commands on an API in this process, with or without workers."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from click.testing import Result
from fastapi import FastAPI
from typer.testing import CliRunner

from app.accounts import service as accounts
from app.cli import app as cli
from app.cli import connect
from app.cli.connect import InProcess
from app.client.rest import Api
from app.settings import Settings
from app.web.deps import Services

Run = Callable[..., Result]


@pytest.fixture
def api(app: FastAPI, parts: Services, tmp_path: Path) -> Iterator[Api]:
    with parts.sessions.begin() as session:
        token = accounts.ensure_local_token(session, tmp_path / "token")
    headers = {"Authorization": f"Bearer {token}"}
    with start_blocking_portal() as portal:
        transport = InProcess(app, portal)
        with httpx.Client(
            transport=transport, base_url="http://127.0.0.1", headers=headers
        ) as http:
            yield Api(http, patience=0)


@pytest.fixture
def run(api: Api, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `stillhouse …` on the test's API; the exit code must be the one expected."""

    @contextmanager
    def opened(_settings: Settings, **_options: bool) -> Iterator[Api]:
        yield api

    monkeypatch.setattr(connect, "open_api", opened)

    def invoke(*words: object, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == exit_code, (result.output, result.exception)
        return result

    return invoke


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """Run a command with --json and return what it printed."""
    return lambda *words: json.loads(run(*words, "--json").stdout)


@pytest.fixture
def project(run_json: Callable[..., Any]) -> str:
    return str(run_json("projects", "create", "Tickets")["slug"])
