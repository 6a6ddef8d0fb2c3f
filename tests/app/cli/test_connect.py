"""A home that nothing serves: reading starts only its database, writing is refused."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from app.cli import app as cli
from app.cli import connect
from app.cli.connect import in_process
from app.local.home import HomeLock
from app.local.postgres import TEST_OPTIONS, Postgres
from app.local.urls import write_servers
from app.settings import Settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("DATABASE_URL", "REDIS_URL", "STILLHOUSE_DATABASE_URL", "STILLHOUSE_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "h"))
    return tmp_path / "h"


def test_reading_needs_no_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = CliRunner().invoke(cli, ["projects", "list"])
    assert nothing.exit_code == 3
    assert "There is nothing in" in nothing.stderr
    postgres = Postgres(home / "postgres", options=TEST_OPTIONS)
    postgres.start()
    with in_process(Settings(home=home, database_url=postgres.url())) as api:
        api.post("/projects", {"name": "Tickets"})
    postgres.stop()

    read = CliRunner().invoke(cli, ["projects", "list", "--json"])
    assert read.exit_code == 0, read.stderr
    assert [p["slug"] for p in json.loads(read.stdout)] == ["tickets"]
    assert not (home / "postgres" / "data" / "postmaster.pid").exists(), "stopped again"
    assert (home / "token").stat().st_mode & 0o777 == 0o600

    write = CliRunner().invoke(cli, ["projects", "create", "x"])
    assert write.exit_code == 3
    assert "stillhouse up" in write.stderr

    monkeypatch.setattr(connect, "LOCK_PATIENCE_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("STILLHOUSE_PORT", str(other.getsockname()[1]))
        with HomeLock(home, doing="being read"):
            refused = CliRunner().invoke(cli, ["projects", "list"])
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()  # another home's server was not asked, nor given the token
    assert refused.exit_code == 3
    assert "is being read already" in refused.stderr


def test_a_home_that_starts_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` holds the lock first; its address and the token come while it starts."""
    asked: list[str | None] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_words: object) -> None:
            return

    def started(_seconds: float) -> None:
        """The pause of the one who waits: by its end the server is up."""
        if not served:
            served.append(ThreadingHTTPServer(("127.0.0.1", 0), Answers))
            Thread(target=served[0].serve_forever, daemon=True).start()
            (home / "token").write_text("made-late")
            (home / "address").write_text(f"http://127.0.0.1:{served[0].server_port}")

    served: list[ThreadingHTTPServer] = []
    monkeypatch.setenv("STILLHOUSE_PORT", "9")
    monkeypatch.setattr("app.cli.connect.time.sleep", started)
    with HomeLock(home):
        found = CliRunner().invoke(cli, ["projects", "list", "--json"])
    served[0].shutdown()
    served[0].server_close()
    assert found.exit_code == 0, found.stderr
    assert found.stdout == "[]\n"
    assert "is starting: waiting for it." in found.stderr
    assert asked[-1] == "Bearer made-late"


@pytest.mark.parametrize("words", [["projects", "list"], ["projects", "create", "x"]])
def test_a_start_that_does_not_end_is_a_sentence(
    words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PORT", "9")
    monkeypatch.setattr(connect, "START_PATIENCE_SECONDS", 0)
    with HomeLock(home):
        refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 3
    assert "is being served, but nothing answers" in refused.stderr


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("words", "looked_in"),
    [
        (["--home", "before", "projects", "list"], "before"),
        (["projects", "list", "--home", "after"], "after"),
        (["--home", "before", "projects", "list", "--home", "after"], "after"),
        (["projects", "list"], "h"),
    ],
)
def test_a_home_is_named_before_or_after_the_command(
    words: list[str], looked_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 3
    assert f"There is nothing in {tmp_path / looked_in} yet" in found.stderr


@pytest.mark.usefixtures("home")
def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_URL", "http://127.0.0.1:9")
    refused = CliRunner().invoke(cli, ["projects", "create", "x"])
    assert refused.exit_code == 3
    assert "http://127.0.0.1:9" in refused.stderr


@pytest.mark.usefixtures("home")
def test_a_database_that_is_away_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("STILLHOUSE_PORT", "9")
    refused = CliRunner().invoke(cli, ["projects", "list"])
    assert refused.exit_code == 3
    assert "The database does not answer" in refused.stderr


@pytest.mark.usefixtures("home")
def test_a_bind_in_the_clear_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOST", "0.0.0.0")  # noqa: S104 - what is refused
    refused = CliRunner().invoke(cli, ["up"])
    assert refused.exit_code == 2
    assert "without TLS" in refused.stderr


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STILLHOUSE_ALLOWED_HOSTS", "not json", "error parsing value for field"),
        ("STILLHOUSE_PORT", "abc", "STILLHOUSE_PORT: Input should be a valid integer"),
        ("STILLHOUSE_PORT", "70000", "STILLHOUSE_PORT: Input should be less than or equal"),
        ("STILLHOUSE_LOG_FORMAT", "xml", "STILLHOUSE_LOG_FORMAT: Input should be 'json'"),
        ("STILLHOUSE_HOME", __file__, "is not a folder"),
    ],
)
def test_a_setting_that_cannot_be_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    for command in (["projects", "list"], ["up"], ["doctor"]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2, (command, result.exception)
        assert said in result.stderr


def test_the_doctor_of_a_home_that_has_stopped_names_the_command(home: Path) -> None:
    home.mkdir()
    write_servers(
        home, database_url="postgresql+psycopg://x@127.0.0.1:1/x", redis_url="redis://127.0.0.1:1"
    )
    told = CliRunner().invoke(cli, ["doctor"])
    assert told.exit_code == 1
    assert told.stdout.count("not running") == 2
    assert "psycopg" not in told.stdout


def test_a_port_that_is_none_is_a_wrong_argument(home: Path) -> None:
    assert CliRunner().invoke(cli, ["up", "--port", "99999"]).exit_code == 2
    assert not home.exists()
